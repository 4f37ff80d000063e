"Attempts to lose, falsify or break a result, counted: a few in `make test`, all in `make attack` (PIXELREG_ATTACK=full)."

import errno
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("PIXELREG_ATTACK") == "full"


def count(few, all_):
    return all_ if FULL else few


def report(what, good, n, kinds=None):
    print(
        f"\n{what}: {good} of {n}"
        + (f" ({', '.join(f'{k} {v}' for k, v in sorted(kinds.items()))})" if kinds else "")
    )


# Parameters: every chapter, every field of a recipe and of an attack, the chapter's own names
NUMBER = ["0", "-1", "1.5", "nan", "inf", "x", "", "9" * 400, "1e400", "1e30"]
COMMON = dict(
    seeds=[
        "",
        "x",
        "1-",
        "0-999999999",
        "-1",
        "1.5",
        "nan",
        "0,0",
        "999-1000",
        "1000000000",
        "3-1",
        "9" * 30,
    ],
    preset=["qick", "", " "],
    download=["maybe", "2"],
    figures=["../x", "/tmp/x", "a\nb", "x" * 300, "", ".", "a/b", "../../x"],
    nosuch=["1"],
)
RECIPE = dict(
    epochs=NUMBER,
    batch=[*NUMBER, "1000000000000"],
    width=[*NUMBER, "100000"],
    pairs=[*NUMBER, "1000000000"],
    n_reg=["0", "1", "-1", "nan", "x", "1000000000"],
    n_train=["0", "9", "nan", "x", "1e12"],
    n_test=["0", "-3", "x", "1000000000", "nan"],
    n_attack=["0", "x", "1e12"],
    steps=["0", "-1", "x", "nan", "1e12"],
    repeats=["0", "x", "1e9"],
    directions=["0", "x", "nan"],
    alpha=["-1", "nan", "inf", "x", "0", "1e400"],
    th=["0", "1", "nan", "inf", "x", "-1"],
    th2=["nan", "2"],
    lr=["0", "nan", "inf", "-1", "1e300"],
    momentum=["1", "nan", "-1", "x"],
    noise=["-1", "nan", "2"],
    label_smoothing=["1", "nan"],
    blur=["-1", "inf", "nan", "100"],
    stem_filters=["sobel", ""],
    network=["resnet19", ""],
    policy=["steps", ""],
    precision=["half", ""],
    init=["x"],
    clamp=["x", ""],
    dataset=["cifar11", "", "folder:", "../x"],
    reg_dataset=["imagenett", ""],
    layers=["", "stem,stem", ",", "stem,", "stem,layer9", "a b"],
    transform=["tanh"],
    reduction=["max"],
    sampling=["x"],
    colour=["maybe"],
    merge=["x"],
    shuffled=["2"],
    target=["", "thin", "S_Th", "th:", "th:nobody", "th:../x", "neural:no_such_animal", "epochs2"],
)
ARMS = [
    "S_Th:nobody",
    "blur:lowpassed",
    "S_thin",
    "",
    "S_Th,S_Th",
    "epochs0",
    "neural:../x",
    "none",
]
ALONE = [
    "S_Th",
    "unregularized",
    "unregularized,epochs1",
    "unregularized,neural:no_such_animal",
]  # nothing to compare
OWN = {
    "00": dict(
        datasets=["", "cifar11", "objects,objects", "../x"],
        n_shown=["0", "-1", "1000000", "x", "nan"],
    ),
    "01": dict(
        n_reg=["0", "-5", "1", "x", "1000000000"],
        th=["0", "1", "-1", "nan", "inf", "x"],
        reg_dataset=["x", "", "../x"],
    ),
    "02": dict(
        boots=["0", "-1", "x", "nan", "1e12"],
        perms=["0", "-1", "x", "1e12"],
        n_reg=["0", "1", "1e9"],
        neural=["../../x", "a,a", "", "/etc", "a\nb"],
        recorded=["../x", "a/b"],
        reg_dataset=["x", ""],
    ),
    "03": dict(arms=[*ARMS, "unregularized", "epochs1,noise"]),
    "04": dict(arms=ARMS + ALONE),
    "05": dict(arms=ARMS + ALONE),
    "07": dict(
        sets=[
            "",
            "photographs",
            "photographs:x",
            "x:y",
            "a:b:c",
            "photographs:objects,photographs:objects",
        ],
        every_layer=["maybe", "2"],
    ),
    "06": dict(
        alphas=["", "0", "-1", "nan", "inf", "1,1", "x"],
        ths=["", "0", "1", "nan", ".4,.4"],
        less=["0", "x", "5,5", "-1"],
        a0=["0", "-1", "2", "nan", "inf", "x"],
    ),
    "08": dict(
        severity=["0", "6", "-1", "1.5", "nan", "x"],
        shown=["0", "6", "x"],
        n_shown=["0", "-1", "1e12", "x"],
    ),
    "09": dict(severity=["0", "6", "x"], reg_datasets=["", "x", "photographs,photographs", "../x"]),
    "10": dict(
        ks=["", "0", "-1", "x", "4,4", "1e30", "1000000000"],
        ns=["", "1", "x", "100,100", "nan", "99999999999"],
        rounds=["0", "-1", "x", "1e12"],
    ),
    "11": dict(sets=["", "photographs", "photographs:x", "x:y"]),
    "12": dict(
        every_layer=["maybe", "2"],
        reg_datasets=["", "x", "photographs,photographs"],
        more_seeds=["", "x", "0-999999999", "1,1"],
    ),
    "13": dict(severity=["0", "6", "x", "nan"]),
    "14": dict(
        arms=ARMS,
        alphas=["", "-1", "nan", "inf", "1,1", "x"],
        attacks=["", "pgd", "DDN,DDN", "../x"],
        every_layer=["maybe", "2"],
        **dict.fromkeys(
            (
                "pgd_steps",
                "restarts",
                "n_white",
                "halvings",
                "searches",
                "jsma_targets",
                "n_masked",
                "draws",
                "queries",
                "n_active",
                "eot",
            ),
            NUMBER,
        ),
    ),
    "15": dict(
        arms=["", "full", "winners,winners", "../x"],
        train_steps=NUMBER,
        test_steps=NUMBER,
        draws=NUMBER,
        votes=NUMBER,
    ),
    "16": dict(
        filters=NUMBER,
        passes=NUMBER,
        widths=["", "0", "33", "4,4", "x"],
        norms=["", "1", "x", "2,2"],
        powers=["", "0", "x"],
        rate=["0", "-1", "nan", "inf", "x", "1e400"],
        confidence=["0", "1.5", "nan", "x"],
        step=["0", "2", "nan"],
        n_radii=NUMBER,
        least=NUMBER,
        boots=NUMBER,
    ),
    "17": dict(folders=["", "nowhere", "quick,quick", "../x"]),
}
EVERY = dict(
    seed=["1"], name=["low"], source=["x"], rows=["lowpassed"], kind=["th"]
)  # of configs, but said elsewhere


def bad_parameters():
    from pixelreg.experiment.parameters import chapter_configs
    from pixelreg.training.recipe import Recipe

    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")):
        recipe = RECIPE if Recipe in chapter_configs(path.stem) else {}
        mine = COMMON | EVERY | recipe | OWN.get(path.name[:2], {})
        yield from ((path, name, value) for name, values in mine.items() for value in values)


def names_itself(said, name):
    return said is not None and (
        said.startswith(f"{name} must ")
        or f": {name} must " in said
        or name in ("nosuch", *EVERY)
        and f"unknown parameter {name}=" in said
    )


def test_parameters_are_refused_before_the_first_job(monkeypatch, tmp_path):
    "Up to the end of `params`, chapter by chapter, without a kernel"
    from pixelreg.experiment.run_chapters import parameter_error

    for name in [n for n in os.environ if n.startswith("PIXELREG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIXELREG_STORE", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(ROOT)
    cases = list(bad_parameters())
    cases = cases if FULL else random.Random(0).sample(cases, 200)
    passed = [
        (path.name, name, value[:20], said)
        for path, name, value in cases
        if not names_itself(said := parameter_error(path, {"preset": "smoke", name: value}), name)
    ]
    report(
        "bad parameters refused by `params`, naming themselves",
        len(cases) - len(passed),
        len(cases),
    )
    assert not passed
    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")):
        assert parameter_error(path, dict(preset="smoke", seeds="2")) is None, (
            path
        )  # what is right is not refused


def test_a_kernel_refuses_soon(tmp_path):
    "papermill alone, in CPU seconds of all its processes (the machine may be busy)"
    cases = random.Random(1).sample(
        [c for c in bad_parameters() if c[2].strip() and "\n" not in c[2]], count(1, 200)
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIXELREG_")} | dict(
        PIXELREG_STORE=str(tmp_path), PIXELREG_WORKERS="1"
    )
    slowest = 0
    for path, name, value in cases:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "papermill",
                str(path),
                str(tmp_path / "out.ipynb"),
                "--no-progress-bar",
                "-p",
                "preset",
                "smoke",
                "-r",
                name,
                value,
            ],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        slowest = max(slowest, seconds)
        assert done.returncode != 0 and names_itself(done.stderr, name), (
            path.name,
            name,
            value,
            done.stderr[-500:],
        )
    report(
        f"bad parameters refused by a kernel, the slowest after {slowest:.1f} CPU s with papermill's own start",
        len(cases),
        len(cases),
    )
    assert (
        slowest < 40
    )  # on busy threads of a slow machine; a quarter on quiet ones of a fast one: papermill's own start, and the tables that open a chapter


# The store
def damages():
    "name -> what is done to the entry `folder` beside the entry `other`; None: nothing of it may be believed any more"

    def seal(f):
        return json.loads((f / "done.json").read_text())

    def flip(f, o):
        p = f / "model.bin"
        b = bytearray(p.read_bytes())
        b[random.randrange(len(b))] ^= 1 << random.randrange(8)
        p.write_bytes(bytes(b))

    def cut(f, o):
        p = f / "model.bin"
        p.write_bytes(p.read_bytes()[: random.randrange(len(p.read_bytes()))])

    def copied(f, o):
        shutil.rmtree(f)
        shutil.copytree(o, f)

    def over(f, o):
        shutil.copytree(o, f, dirs_exist_ok=True)

    def resealed(f, o, **more):
        from pixelreg.experiment.store import sha256

        (f / "model.bin").write_bytes(b"forged")
        (f / "done.json").write_text(
            json.dumps(dict(seal(f), files={n: sha256(f / n) for n in seal(f)["files"]}) | more)
        )

    def plainly(f, o):  # in the manner of before seals had a checksum
        resealed(f, o)
        (f / "done.json").write_text(json.dumps({k: seal(f)[k] for k in ("files", "made")}))

    def linked(name, to):
        return lambda f, o: ((f / name).unlink(), (f / name).symlink_to(to.format(f=f, o=o)))

    def text(t):
        return lambda f, o: (f / "done.json").write_bytes(t)

    return dict(
        flip=flip,
        cut=cut,
        appended=lambda f, o: (f / "model.bin").open("ab").write(b"x"),
        emptied=lambda f, o: (f / "model.bin").write_bytes(b""),
        gone=lambda f, o: (f / "table.csv").unlink(),
        swapped=lambda f, o: (
            (f / "table.csv").rename(f / "t"),
            (f / "model.bin").rename(f / "table.csv"),
            (f / "t").rename(f / "model.bin"),
        ),
        copied=copied,
        over=over,
        seal_of_another=lambda f, o: shutil.copy(o / "done.json", f / "done.json"),
        emptied_seal=lambda f, o: (f / "done.json").write_text(json.dumps(dict(seal(f), files={}))),
        only_files=lambda f, o: (f / "done.json").write_text('{"files": {}}'),
        resealed=resealed,
        resealed_plainly=plainly,
        resealed_other_key=lambda f, o: resealed(f, o, key="x"),
        fewer_files=lambda f, o: (
            (f / "table.csv").write_text("forged"),
            (f / "done.json").write_text(
                json.dumps(dict(seal(f), files={"model.bin": seal(f)["files"]["model.bin"]}))
            ),
        ),
        list=text(b"[]"),
        number=text(b"3"),
        null=text(b"null"),
        nothing=text(b""),
        broken=text(b'{"files": {'),
        binary=text(b"\xff\x00\xfe"),
        deep=text(b"[" * 10**5),
        files_list=text(b'{"files": ["model.bin"]}'),
        files_number=text(b'{"files": {"model.bin": 3}}'),
        path=text(b'{"files": {"../../x": "0"}}'),
        folder=lambda f, o: ((f / "done.json").unlink(), (f / "done.json").mkdir()),
        file_is_folder=lambda f, o: ((f / "table.csv").unlink(), (f / "table.csv").mkdir()),
        link_to_another=lambda f, o: (shutil.rmtree(f), f.symlink_to(o)),
        link_to_a_file=linked("table.csv", "{o}/table.csv"),
        link_in_a_circle=linked("table.csv", "{f}/table.csv"),
        link_to_nothing=linked("table.csv", "/no/such"),
        endless_seal=linked("done.json", "/dev/zero"),
        seal_is_a_pipe=lambda f, o: ((f / "done.json").unlink(), os.mkfifo(f / "done.json")),
        file_is_a_pipe=lambda f, o: ((f / "model.bin").unlink(), os.mkfifo(f / "model.bin")),
        mark_is_a_link=linked(".sealed", "/no/such"),
    )


def attack_store(n, tmp):
    "Damages found, and then repaired or named by a StoreError, of n"
    from pixelreg.experiment import store as room

    store, kinds, found, mended, missed = room.Store(tmp / "store"), damages(), 0, 0, Counter()

    def make(name):
        return lambda folder: (
            room.write_bytes(folder / "model.bin", name.encode() * 50),
            (folder / "table.csv").write_text(f"value\n{name}\n"),
        )

    random.seed(0)
    for i in range(n):
        shutil.rmtree(store.path, ignore_errors=True)
        entry, other = store.get("a", make("a")), store.get("b", make("b"))
        name = list(kinds)[i % len(kinds)]
        kinds[name](entry, other)
        try:
            seen = not store.has("a")
        except Exception:
            seen = False  # raw
        found += seen
        try:
            store.get("a", make("a"))
            good = (
                (entry / "model.bin").read_bytes() == b"a" * 50
                and (entry / "table.csv").read_text() == "value\na\n"
                and store.has("a")
                and store.has("b")
            )
        except room.StoreError:
            good = True
        except Exception:
            good = False
        mended += good
        if not (seen and good):
            missed[name] += 1
    return found, mended, missed


def test_damages_are_found_and_mended(tmp_path):
    n = count(70, 210)
    found, mended, missed = attack_store(n, tmp_path)
    report("damages of the store found", found, n)
    report("… and mended or named", mended, n, missed)
    assert found == mended == n, missed


# Readers
def seeds_of_files(tmp):
    "(name, bytes, what reads it)"
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from pixelreg.data import file_readers as sources
    from pixelreg.data.cifar10_c import open_npy
    from pixelreg.data.pixels import decode

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    batch, meta = (
        {b"data": x, b"labels": [0, 1, 2, 3]},
        {b"label_names": [b"a", b"b", b"c", b"d"]},
    )
    (tmp / "meta").write_bytes(pickle.dumps(meta))
    (tmp / "labels").write_bytes(b"\0\0\x08\x01" + (4).to_bytes(4, "big") + bytes(4))
    images = {}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        out = io.BytesIO()
        Image.fromarray(x[0].reshape(32, 32, 3)).save(out, kind)
        images[kind] = out.getvalue()
    table = io.BytesIO()
    pq.write_table(
        pa.table(dict(img=[dict(bytes=images["PNG"], path="")] * 4, label=[0, 1, 2, 3])),
        table,
        write_page_checksum=True,
    )
    idx = (
        b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 28, 28)) + x[:, :784].tobytes()
    )
    npy = io.BytesIO()
    np.save(npy, x.reshape(4, 32, 32, 3))

    def pickles(f):
        return sources.read_pickles((f, tmp / "meta"), "RGB", (32, 32))

    def of_image(f):
        return decode(f.read_bytes(), "RGB", (32, 32), None, str(f))

    return [
        ("batch", pickle.dumps(batch, 2), pickles),
        ("batch5", pickle.dumps(batch, 5), pickles),
        ("names", pickle.dumps(meta), sources.read_pickle),
        ("idx", idx, lambda f: sources.read_idx_pair((f, tmp / "labels"), "L", (28, 28))),
        (
            "idx.gz",
            gzip.compress(idx),
            lambda f: sources.read_idx_pair((f, tmp / "labels"), "L", (28, 28)),
        ),
        (
            "table.parquet",
            table.getvalue(),
            lambda f: sources.read_parquet_images((f,), "RGB", (32, 32)),
        ),
        ("x.npy", npy.getvalue(), lambda f: open_npy(f, (4, 32, 32, 3)).sum()),
        *((f"x.{k.lower()}", b, of_image) for k, b in images.items()),
    ]


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, how = rng.randrange(len(data) or 1), rng.randrange(7)
        if how == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        if how == 1:
            data[at : at + rng.choice((1, 4, 64))] = rng.randbytes(rng.choice((1, 4, 64)))
        if how == 2:
            del data[at:]
        if how == 3:
            del data[at : at + rng.randrange(1, 16)]
        if how == 4:
            data[at : at + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0")
            )
        if how == 5:
            data[at:at] = data[: rng.randrange(1, 64)]
        if how == 6:
            data[:0] = b""
            data[at:at] = rng.choice(
                (b"cos\nsystem\n", b"c__builtin__\neval\n", b"ctypes", b"O8", b"f8", b"|V99999999")
            )
    return bytes(data)


def fuzz(n, folder):
    "Run in a process of its own: prints how the readers took n mutated files"
    tmp, rng, how = Path(folder), random.Random(0), Counter()
    files = seeds_of_files(tmp)
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
    signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(TimeoutError("hangs")))
    os.system = lambda *a: how.update(["CODE"])  # what a pickle would call
    for i in range(n):
        name, data, read = files[i % len(files)]
        path = tmp / f"mutated.{name}"
        path.write_bytes(mutated(data, rng))
        print(i, name, file=sys.stderr, flush=True)  # the last one before a crash
        signal.alarm(20)
        try:
            read(path)
            how["read"] += 1
        except (ValueError, ImportError) as e:
            how[
                "refused, naming the file"
                if str(path) in str(e)
                else f"UNNAMED {name}: {str(e)[:90]}"
            ] += 1
        except BaseException as e:
            how[f"RAW {name}: {type(e).__name__}: {str(e)[:90]}"] += 1
        signal.alarm(0)
    print(json.dumps(how))


def test_readers_take_mutated_files(tmp_path):
    n = count(400, 10_000)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_attacks; test_attacks.fuzz({n}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"crashed on file {done.stderr[-300:]}"
    how = json.loads(done.stdout.splitlines()[-1])
    good = how.get("read", 0) + how.get("refused, naming the file", 0)
    report("mutated files read or refused by name", good, n, how)
    assert good == n


# Processes
def tiny():
    from pixelreg.experiment.presets import PRESETS
    from pixelreg.training.recipe import Recipe

    return Recipe.from_dict(PRESETS["smoke"]).replace(
        n_train=120, epochs=5, n_reg=20, width=2, batch=20
    )


def child(work):
    "A forked process that works and ends"
    if pid := os.fork():
        return pid
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    code = 1
    try:
        work()
        code = 0
    except BaseException as e:
        Path(os.environ["PIXELREG_STORE"], f"error{os.getpid()}").write_text(
            f"{type(e).__name__}: {e}"
        )
    finally:
        os._exit(code)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    "One thread, a store of its own, and the bits of an undisturbed training with the seconds it took"
    import torch

    from pixelreg.experiment.jobs import run_jobs
    from pixelreg.training.runs import Run

    if torch.cuda.is_available():
        pytest.skip("processes are forked, which CUDA does not allow")
    tmp_path, monkeypatch, threads = (
        tmp_path_factory.mktemp("training"),
        pytest.MonkeyPatch(),
        torch.get_num_threads(),
    )
    torch.set_num_threads(1)
    recipe = tiny()

    def train():
        run = Run("S_Th", recipe, recipe.key())
        run_jobs(run.jobs())
        return (run.folder / "model.safetensors").read_bytes()

    monkeypatch.setenv("PIXELREG_WORKERS", "1")

    def fresh(name):
        monkeypatch.setenv("PIXELREG_STORE", str(tmp_path / name))
        (tmp_path / name).mkdir()
        return tmp_path / name

    fresh("warm")
    os.waitpid(child(train), 0)  # also decodes the images
    shutil.rmtree(tmp_path / "warm" / "runs")
    started = time.time()
    os.waitpid(child(train), 0)
    seconds = time.time() - started
    bits = (tmp_path / "warm" / "runs" / recipe.key() / "model.safetensors").read_bytes()

    def again(name):
        place = fresh(name)
        shutil.copytree(tmp_path / "warm" / "cache", place / "cache")
        return place

    yield dict(train=train, bits=bits, seconds=seconds, again=again, key=recipe.key())
    monkeypatch.undo()
    torch.set_num_threads(threads)


def finished(place, t):
    return (place / "runs" / t["key"] / "model.safetensors").read_bytes() == t["bits"]


def test_killed_trainings_go_on_to_the_same_bits(training):
    n, rng, same, kills = count(2, 50), random.Random(0), 0, 0
    for i in range(n):
        place = training["again"](f"kill{i}")
        for _ in range(1 if FULL else 2):  # somewhere in its course
            pid = child(training["train"])
            time.sleep(rng.random() * training["seconds"])
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert os.waitpid(child(training["train"]), 0)[1] == 0, [
            p.read_text() for p in place.glob("error*")
        ]
        same += finished(place, training)
        assert same == i + 1, f"other bits after kill {i}"
        from pixelreg.experiment.store import Store
        from pixelreg.experiment.store_cli import remove_leftovers, verify_store

        for s in ("cache", "runs"):
            remove_leftovers(Store(place / s))
        left = [
            p
            for p in place.rglob("*")
            if p.is_file() and (p.name.count(".") > 1 and p.name[0] == "." or p.suffix == ".lock")
        ]
        assert not left and verify_store(Store(place / "runs")) == (1, 0, {}), left
        shutil.rmtree(place)
    report(
        f"trainings killed ({kills} kills in time) and resumed to the bit, nothing left by `store clean`",
        same,
        n,
    )
    assert same == n


def test_simultaneous_starts_train_once(training):
    n = count(4, 20)
    place = training["again"]("together")
    ends = [os.waitpid(pid, 0)[1] for pid in [child(training["train"]) for _ in range(n)]]
    report("processes that asked for one run at once and got it", ends.count(0), n)
    assert ends == [0] * n and finished(place, training), [
        p.read_text() for p in place.glob("error*")
    ]
    assert not [p for p in (place / "runs" / training["key"]).iterdir() if p.name.startswith("..")]


def test_full_disks_lose_nothing(training):
    "The k-th write finds the disk full: a clear error; with room again the run goes on to the same bits"
    n, clear, same = count(2, 10), 0, 0
    for k in range(n):
        place = training["again"](f"full{k}")

        def train():
            real, calls = os.fsync, []

            def fsync(fd):
                calls.append(fd)
                if len(calls) > k:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real(fd)

            os.fsync = fsync
            training["train"]()

        assert os.waitpid(child(train), 0)[1] != 0
        clear += any(
            p.read_text().startswith("StoreError: cannot write")
            and "the disk is full: free some space" in p.read_text()
            for p in place.glob("error*")
        )
        assert os.waitpid(child(training["train"]), 0)[1] == 0
        same += finished(place, training)
    report("full disks that gave a clear error", clear, n)
    report("… and the same bits with room again", same, n)
    assert clear == same == n


# Archives
def small_store(path):
    "Four toy entries, of 300 kB"
    from pixelreg.experiment.store import Store, write_bytes

    store = Store(path)

    def run(folder):
        write_bytes(folder / "model.safetensors", random.Random(folder.name).randbytes(150_000))
        (folder / "history.csv").write_text("epoch,val_loss\n0,2.3\n")

    def measurement(folder):
        (folder / "table.csv").write_text("x,metric,value\n0,accuracy,.5\n")

    for key in ("a1", "b2"):
        store.get(key, run)
        store.get(f"{key}/measurements/m", measurement)
    return store


def files_of(store):
    return {
        p.relative_to(store.path): p.read_bytes()
        for p in store.path.rglob("*")
        if p.is_file() and ".locks" not in p.parts
    }


def test_damaged_archives_are_refused_naming_the_file(tmp_path):
    "Mutations and single bits, in one file and in one of several"
    from pixelreg.experiment.archives import LEAST, open_archives, pack_entries, to_pack
    from pixelreg.experiment.store import StoreError

    store, rng, n, named = small_store(tmp_path / "store"), random.Random(0), count(200, 5000), 0
    light = pack_entries(store, tmp_path / "light", to_pack(store, weights=False))
    several = pack_entries(store, tmp_path / "several", to_pack(store), 2 * LEAST)
    for i in range(n):
        paths = (light, several)[i % 2]
        path = rng.choice(paths)
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        bit = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        data = mutated(whole, rng) if i % 4 > 1 else bit
        path.write_bytes(data)
        try:
            open_archives(paths)
        except StoreError as e:
            named += str(path) in str(e) and data != whole
        else:
            named += data == whole  # a mutation may change nothing
        path.write_bytes(whole)
    report("damaged archives refused, naming the file", named, n)
    assert named == n and len(open_archives(light + several)) == 2


def test_killed_packings_and_unpackings_go_on(tmp_path, monkeypatch):
    "Killed from outside at any time; whatever is there under its name is whole"
    from pixelreg.experiment.archives import (
        LEAST,
        check_part,
        open_archives,
        pack_entries,
        to_pack,
        unpack_entries,
    )
    from pixelreg.experiment.store import Store
    from pixelreg.experiment.store_cli import remove_leftovers, verify_store

    monkeypatch.setenv("PIXELREG_STORE", str(tmp_path))
    store, rng, n, kills, same = (
        small_store(tmp_path / "store"),
        random.Random(0),
        count(6, 100),
        0,
        0,
    )

    def slowly(place, other):  # each write takes as long as on a slow disk
        real = os.fsync

        def fsync(fd):
            time.sleep(0.02)
            real(fd)

        os.fsync = fsync
        pack_entries(store, place, to_pack(store), LEAST)
        for archive in open_archives([place]):
            unpack_entries(other, archive)

    for i in range(n):
        place, other = tmp_path / f"parts{i}", Store(tmp_path / f"other{i}")
        for _ in range(2):
            pid = child(lambda: slowly(place, other))
            time.sleep(rng.random() * 0.5)
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            for path in place.glob("*.tar"):
                check_part(path)
            assert verify_store(other)[2] == {}
        assert os.waitpid(child(lambda: slowly(place, other)), 0)[1] == 0, [
            p.read_text() for p in tmp_path.glob("error*")
        ]
        remove_leftovers(other)
        same += files_of(other) == files_of(store)
        shutil.rmtree(place)
        shutil.rmtree(other.path)
    report(
        f"packings and unpackings killed ({kills} kills in time) and gone on to the same files",
        same,
        n,
    )
    assert same == n and kills > n / 2
