"""The shell acts: asyncio, the only storey with effects."""
