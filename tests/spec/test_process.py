"""`zemosaicd process`: one folder, one mosaic, an exit code that scripts can trust."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests.nights import PATIENCE_S, TINY, Place, drop, night, pixels, tree, undisturbed
from zemosaicd import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Six good frames, waiting."""
    made = Place(tmp_path)
    drop(night(), made.incoming)
    return made


def test_exit_0_and_the_path_of_the_mosaic(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A good night: the mosaic, its preview and its report, and nothing else; the frames untouched."""
    frames = tree(place.incoming)
    assert place.process() == 0
    assert capsys.readouterr().out == f"{place.mosaic()}  good\n"
    assert {path.name for path in place.mosaic().parent.iterdir()} == {"mosaic.fits", "preview.png", "report.json"}
    assert tree(place.incoming) == frames
    assert place.leftovers() == []


def test_a_whole_night_tells_the_daemon_nothing_in_numpys_words(place: Place) -> None:
    """All results can be read without numpy, which would make the daemon slower to start, and larger."""
    settings = ("process", str(place.incoming), "--output", str(place.output), "--set", f"paths.state={place.state}")
    script = "import sys; from zemosaicd.cli import main; print(main(sys.argv[1:]), 'numpy' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *settings]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[-1] == "0 False"


def test_every_phase_says_its_start(place: Place) -> None:
    """PHASE_UPDATE 1 to 7, in order (4.5 is optional)."""
    place.process()
    assert [x["message"] for x in place.events("PHASE_UPDATE")] == [f"PHASE_UPDATE:{n}" for n in (1, 2, 3, 4, 5, 6, 7)]


def test_M5_pixels_do_not_depend_on_the_memory_budget(place: Place) -> None:
    """16 MB and 512 MB a tile: the same bytes."""
    assert place.process("tiles.memory_mb=16") == 0
    assert pixels(place.mosaic()) == undisturbed()


# --- again ---------------------------------------------------------------------------------------------------------


def test_F26_a_second_run_changes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The same frames, the same settings: the mosaic that is there, and exit code 0."""
    place.process()
    before = tree(place.output)
    capsys.readouterr()
    assert place.process() == 0
    assert capsys.readouterr().out == f"{place.mosaic()}  good (unchanged)\n"
    assert tree(place.output) == before
    assert place.leftovers() == []


def test_F26_other_settings_make_a_new_revision(place: Place) -> None:
    """The old mosaic, preview and report stay, byte for byte, under names that carry their revision."""
    place.process()
    folder = place.mosaic().parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert place.process("tiles.rejection=none") == 0
    assert {path.name for path in folder.iterdir()} == {
        "mosaic.fits", "preview.png", "report.json", "mosaic.r1.fits", "preview.r1.png", "report.r1.json",
    }  # fmt: skip
    for name, data in before.items():
        stem, suffix = name.split(".")
        assert (folder / f"{stem}.r1.{suffix}").read_bytes() == data
    assert place.report()["revision"] == 2
    assert pixels(place.mosaic())["PRIMARY"] != undisturbed()["PRIMARY"]


def test_F26_another_output_folder_gets_its_own_mosaic(place: Place) -> None:
    """Who asks for the mosaic in another folder finds it there; the first one stays where it is."""
    place.process()
    first = place.mosaic()
    before = tree(place.output)
    elsewhere = place.root / "elsewhere"
    where = [str(place.incoming), "--output", str(elsewhere)]
    arguments = place.arguments("executor.kind=inline", f"paths.output={elsewhere}")
    assert cli.main(["process", *where, *arguments]) == 0
    assert pixels(elsewhere / first.parent.name / "mosaic.fits") == undisturbed()
    assert tree(place.output) == before


def test_P9_a_folder_of_the_users_is_not_written_into(place: Place) -> None:
    """Something of that name lies in the output already: it stays alone, and the mosaic gets the next free name."""
    mine = place.output / "incoming" / "mosaic.fits"
    mine.parent.mkdir(parents=True)
    mine.write_text("the user's own")
    assert place.process() == 0
    assert [path.name for path in mine.parent.iterdir()] == ["mosaic.fits"]
    assert mine.read_text() == "the user's own"
    assert pixels(place.output / "incoming-2" / "mosaic.fits") == undisturbed()


def test_one_folder_is_one_session_however_it_is_spelled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`process dir/../dir` from elsewhere is the second run of the same night."""
    place.process()
    monkeypatch.chdir(place.output)
    assert place.process(folder=Path("../output/../incoming")) == 0
    assert len(place.sessions()) == 1


# --- frames that do not count --------------------------------------------------------------------------------------


def test_F27_the_same_frame_under_two_names_counts_once(place: Place) -> None:
    """Same bytes, two names: six frames used, the twin named with its rule; the pixels are those without it."""
    drop(night()[:1], place.incoming, names=["zz_copy.fit"])
    assert place.process() == 0
    frames = place.report()["frames"]
    assert (frames["total"], frames["used"]) == (7, 6)
    (twin,) = frames["rejected"]
    assert (Path(twin["path"]).name, twin["reason"]) == ("zz_copy.fit", "duplicate")
    assert pixels(place.mosaic()) == undisturbed()


def test_C2_a_truncated_frame_is_rejected_and_the_rest_becomes_the_mosaic(place: Place) -> None:
    """`process` has no tomorrow: what is not whole now is left out, with the measured size and the limit."""
    whole = night()[5]
    short = place.incoming / whole.name
    short.write_bytes(whole.read_bytes()[:-60_000])
    assert place.process() == 0
    (line,) = place.events("frame_rejected")
    assert line["frame"] == whole.name
    assert place.report()["frames"]["used"] == 5
    short.write_bytes(whole.read_bytes())
    assert place.process() == 0, "completed later, it makes a second revision"
    assert place.report()["frames"]["used"] == 6
    assert pixels(place.mosaic())["PRIMARY"] == undisturbed()["PRIMARY"]


def test_an_unsolvable_frame_holds_nothing_up(place: Place) -> None:
    """A frame of noise is left out with its rule; the others become the mosaic."""
    with fits.open(night()[0]) as hdus:
        noise = np.random.default_rng(3).normal(1000, 20, hdus[0].data.shape).astype(np.uint16)
        fits.PrimaryHDU(noise, hdus[0].header).writeto(place.incoming / "clouds.fit")
    assert place.process() == 0
    frames = place.report()["frames"]
    assert frames["used"] == 6
    assert [Path(f["path"]).name for f in frames["rejected"]] == ["clouds.fit"]
    assert frames["rejected"][0]["reason"]


def test_F29_an_empty_folder_ends_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there: exit code 1, one sentence, nothing made."""
    place = Place(tmp_path)
    place.incoming.mkdir()
    assert place.process() == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"no usable frame in {place.incoming}"
    assert list(place.output.iterdir()) == []


def test_F29_a_night_of_which_nothing_can_be_used(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """All frames constant: no mosaic, one canonical line, exit code 1, nothing left behind."""
    for frame in place.incoming.iterdir():
        with fits.open(frame, mode="update") as hdus:
            hdus[0].data[:] = 1000
    assert place.process() == 1
    (line,) = place.events("session_done")
    assert (line["outcome"], line["frames"], line["tiles"]) == ("empty", 6, 0)
    assert "no mosaic" in capsys.readouterr().err
    assert place.leftovers() == []
    assert list(place.output.iterdir()) == []


def test_F29_one_frame_is_a_mosaic(tmp_path: Path) -> None:
    """A single good frame becomes a mosaic of one."""
    place = Place(tmp_path)
    drop(night()[:1], place.incoming)
    assert place.process() == 0
    assert place.report()["frames"]["used"] == 1


def test_C3_a_bad_session_toml_is_reported_and_its_frames_come_in_once_it_is_mended(place: Place) -> None:
    """The frames beside it are not judged: exit code 1 and the line to mend; mended, the mosaic is made."""
    toml = place.incoming / "session.toml"
    toml.write_text("[tiles]\nkapa_low = 3\n")
    assert place.process() == 1
    (line, *_) = place.events("session_toml_invalid")
    assert "session.toml:2" in line["reason"]
    toml.write_text("[tiles]\nkappa_low = 3\n")
    assert place.process() == 0
    assert pixels(place.mosaic()) == undisturbed()


def test_P10_a_failed_session_keeps_its_files_and_goes_on_when_it_can(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Caches and frames are gone, so every tile fails: exit code 1 and why; with the frames back it is made."""
    place.cut_off("commit JobStarted", "process", str(place.incoming), "--output", str(place.output))
    for cache in place.state.glob("sessions/*/caches/*.npy"):
        cache.unlink()
    away = place.root / "away"
    place.incoming.rename(away)
    place.incoming.mkdir()
    assert place.process() == 1
    assert "no mosaic: tile 1: none of its 3 caches could be had" in capsys.readouterr().err
    assert list(place.state.glob("sessions/*/runtime/plan_r1.json")), "kept for another try"
    assert not list(place.output.rglob("*.fits"))
    place.incoming.rmdir()
    away.rename(place.incoming)
    assert place.process() == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.leftovers() == []


# --- exit codes ----------------------------------------------------------------------------------------------------


def test_exit_2_usage(tmp_path: Path) -> None:
    """A folder that is not there, or a command that does not exist."""
    assert Place(tmp_path).process() == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["proces"])
    assert ended.value.code == 2


def test_exit_3_suspect(place: Place) -> None:
    """Published, but something measured is out of its limit: frames that only the header's pointing places."""
    for frame in list(place.incoming.iterdir())[1:]:
        frame.unlink()
    with fits.open(night(TINY)[0]) as hdus:
        blank = np.random.default_rng(3).normal(1000, 20, hdus[0].data.shape)
        for x, y in ((60, 80), (180, 90), (120, 160), (70, 240), (190, 250), (30, 150), (210, 200), (140, 60)):
            blank[y - 4 : y + 5, x - 4 : x + 5] += 3000 * _star()
        fits.PrimaryHDU(blank.astype(np.uint16), hdus[0].header).writeto(next(place.incoming.iterdir()), overwrite=True)
    code = place.process()
    if code == 1:
        pytest.skip("no frame of unknown stars is placed by its pointing")
    assert (code, place.report()["verdict"]) == (3, "suspect")


def _star() -> np.ndarray:
    y, x = np.mgrid[-4:5, -4:5]
    return np.exp(-(x * x + y * y) / 4.0)


@pytest.mark.parametrize("setting", ["tiles.kapa_low=3", "tiles.kappa_low=banana", "plan.batch_overlap=5"])
def test_exit_78_configuration(place: Place, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that does not exist, a value that is none, keys that contradict each other: one line, nothing done."""
    assert place.process(setting, "plan.batch_cap=2") == 78
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert not place.state.exists()


def test_exit_78_a_journal_that_is_in_use(place: Place) -> None:
    """Two daemons on one state folder: the second refuses, naming the first."""
    with place.run() as life:
        life.wait_for("daemon_started")
        assert place.process() == 78


def test_F1_process_killed_and_called_again(place: Place) -> None:
    """kill -9 in the middle of Phase 3; the same command again ends with the same pixels."""
    place.cut_off("commit TileDone", "process", str(place.incoming), "--output", str(place.output))
    assert place.process() == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.leftovers() == []


def test_F28_process_called_again_with_one_more_frame_after_a_kill(place: Place) -> None:
    """The revision that was cut off is made, then a second one with the late frame, and then it ends."""
    late = next(place.incoming.glob(night()[5].name)).rename(place.root / "late.fit")
    place.cut_off("commit TileDone", "process", str(place.incoming), "--output", str(place.output))
    late.rename(place.incoming / night()[5].name)
    with place.process_apart() as life:
        assert life.process.wait(PATIENCE_S) == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.report()["revision"] == 2


def test_the_users_frames_may_be_read_only(place: Place) -> None:
    """Incoming is only ever read."""
    for frame in place.incoming.iterdir():
        frame.chmod(0o444)
    place.incoming.chmod(0o555)
    try:
        assert place.process() == 0
    finally:
        place.incoming.chmod(0o755)
        shutil.rmtree(place.incoming)


def test_a_mosaic_carries_its_certificate(place: Place) -> None:
    """What was measured of it is in report.json and in the header; injected stars came back whole (issue 3)."""
    assert place.process() == 0
    report = place.report()
    told = report["certificate"]
    assert told["injected"]["stars"] > 0
    assert told["injected"]["flux_ratio"] == pytest.approx([1.0] * 3, abs=0.02)
    assert told["injected"]["offset_px"] < 0.05
    assert told["astrometry"]["stars"] >= 0.9 * told["astrometry"]["wanted"]
    assert told["coverage"]["deepest"] == report["frames"]["used"]
    header = fits.getheader(place.mosaic())
    assert header["ASTRRMS"] == pytest.approx(told["astrometry"]["rms_arcsec"], rel=1e-4)
    assert header["INJFLUX"] == pytest.approx(1.0, abs=0.03)
    assert header["SEENFRAC"] == pytest.approx(told["coverage"]["seen"], rel=1e-4)
    assert report["doubts"] == []
