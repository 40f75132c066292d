"""The core decides: pure functions and values. No clock, no disk, no asyncio, no numpy."""
