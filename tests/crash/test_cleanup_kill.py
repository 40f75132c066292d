"""F2, P9, P10: kill -9 in Phase 7, and again; what is not the session's own stays, and a second end changes nothing."""

from __future__ import annotations

from pathlib import Path

from tests.nights import INLINE, Place, drop, night, pixels, tree, undisturbed

STEPS = ("os.remove .npy", "os.remove master_tile_1.fits", "os.remove plan_r1.json", "os.rmdir .staging-r1",
         "os.rmdir master_tiles", "commit SessionCleaned")  # fmt: skip
"""Right before which step of Phase 7 a life is cut off, life after life."""


def plant(place: Place, session: str) -> dict[Path, bytes]:
    """Files of the user's that look like the session's own, in every place where those lie (P9)."""
    own, output = place.state / "sessions" / session, place.output / session
    names = [
        own / "caches" / "0123456789abcdef01234567.npy",
        own / "caches" / ".mine.npy.abcdefgh.zemosaicd-tmp",
        own / "master_tiles" / "master_tile_99.fits",
        own / "runtime" / "plan_r9.json",
        output / "mosaic_10x10x3.dat",
        output / "global_mosaic_wcs.json",
        output / ".staging-mine" / "mosaic.fits",
        place.output / "mosaic_first_x" / "mine.dat",
        place.incoming / "mosaic_first_y" / "master_tile_1.txt",
        place.incoming / "global_mosaic_wcs_mine.txt",
    ]
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(f"the user's own {name.name}".encode())
    return {name: name.read_bytes() for name in names}


def test_F2_P9_P10_killed_in_cleanup_and_again(tmp_path: Path) -> None:
    """Six lives end between two deletions; the last finishes the work, and touches nothing that it did not make."""
    place = Place(tmp_path)
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    place.cut_off("commit MosaicPublished")
    (session,) = place.sessions()
    planted = plant(place, session)
    frames = tree(place.incoming)
    for words in STEPS:
        place.cut_off(words)
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0
    assert {name: name.read_bytes() for name in planted if name.exists()} == planted
    assert tree(place.incoming) == frames
    own = {path for path in (place.state / "sessions").rglob("*") if path.is_file()}
    assert own == {name for name in planted if name in own}, "all that was the session's own is gone"
    assert pixels(place.output / session / "mosaic.fits") == undisturbed()
    after = tree(place.output), tree(place.state / "sessions")
    for _ in range(2):
        with place.run(INLINE) as life:
            life.wait_for("daemon_ready")
            assert place.at_rest()
            assert life.stop() == 0
        assert (tree(place.output), tree(place.state / "sessions")) == after
