"Jobs on a real Dask scheduler with four worker processes on 127.0.0.1: the bits of one process, whoever is killed."

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

pytest.importorskip("distributed", reason="pip install 'pixelreg[cluster]'")

FULL = os.environ.get("PIXELREG_ATTACK") == "full"


@pytest.fixture(scope="module")
def client():
    import distributed

    from pixelreg.experiment.cluster import local_cluster

    if (gpus := __import__("torch").cuda.device_count()) and gpus < 4:
        pytest.skip("workers would share a GPU")
    cluster = local_cluster(4)
    client = distributed.Client(cluster, set_as_default=False)
    yield client
    client.close()
    cluster.close()


def grid(epochs=3):
    "Four runs and the measurement of each, in the store of the moment: the bits of everything that was kept"
    from pixelreg.attacks.attack_config import Attack
    from pixelreg.attacks.noise import noise_measurement
    from pixelreg.experiment.measure import measure
    from pixelreg.experiment.presets import PRESETS
    from pixelreg.experiment.store import run_store
    from pixelreg.training.recipe import Recipe, make_arms
    from pixelreg.training.runs import Run, transfer_source_run

    base = Recipe.from_dict(PRESETS["smoke"]).replace(n_train=160, epochs=epochs)
    trained = [
        Run(arm, r := recipe.replace(seed=s), r.key())
        for arm, recipe in make_arms(base, ["unregularized", "S_Th"]).items()
        for s in (0, 1)
    ]
    table = measure(
        trained, noise_measurement(Attack(n_test=20).test("photographs"), transfer_source_run(base))
    )
    return table, {
        p.relative_to(run_store().path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(run_store().path.rglob("*"))
        if p.suffix in (".safetensors", ".npz") or p.name == "table.csv"
    }


@pytest.fixture(scope="module")
def alone():
    import torch

    from pixelreg.experiment.store import temporary_store

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with temporary_store():
        found = grid()
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def on(client):
    from pixelreg.experiment import cluster, jobs

    jobs.set_executor(lambda todo, told: cluster.on_cluster(todo, told, client))
    yield client
    jobs.set_executor(None)


def test_a_killed_worker_costs_an_epoch_and_not_a_bit(on, alone, monkeypatch):
    from pixelreg.experiment import cluster
    from pixelreg.experiment.store import temporary_store

    pids, killed, epochs = on.run(os.getpid), [], []

    def told(
        kind, text, **facts
    ):  # the worker that first tells of an epoch is killed at once, in mid-training
        if kind != "epoch":
            return
        epochs.append((facts["key"], facts["line"]))
        if not killed and " epoch 1 of 3" in facts["line"]:
            killed.append(facts["worker"])
            os.kill(pids[facts["worker"]], signal.SIGKILL)

    monkeypatch.setattr(cluster, "emit_event", told)
    with temporary_store():
        table, bits = grid()
    assert killed and bits == alone[1] and table.equals(alone[0])

    def of(key):
        return [line for k, line in epochs if k == key and " epoch " in line and " of 3" in line]

    done = {key: len(of(key)) for key, _ in epochs}
    print(
        f"\nworkers killed 1, grid of 4 runs and 5 measurements complete and equal to one process to the bit; epochs of each run (3 without a kill): {sorted(done.values())}"
    )
    assert len(done) == 5 and all(3 <= n <= 4 for n in done.values())


def keep_to(path):
    from pixelreg.experiment import cluster

    cluster._own = path


def test_workers_with_stores_of_their_own_return_entries(on, alone, tmp_path):
    from pixelreg.experiment.store import Store, run_store, temporary_store
    from pixelreg.experiment.store_cli import verify_store

    workers = list(on.scheduler_info(n_workers=-1)["workers"])
    for i, w in enumerate(workers[:2]):
        on.run(keep_to, str(tmp_path / f"store{i}"), workers=[w])
    try:
        with temporary_store():
            table, bits = grid()
            whole, unfinished, wrong = verify_store(run_store())
    finally:
        on.run(keep_to, None)
    assert bits == alone[1] and table.equals(alone[0]) and (unfinished, wrong) == (0, {})
    apart = [verify_store(Store(tmp_path / f"store{i}" / "runs"))[0] for i in (0, 1)]
    print(
        f"\nentries in the shared store {whole}, in the two stores apart {apart}; the bits are those of one process"
    )
    assert sum(apart) > 0


def test_a_worker_without_a_data_set_says_which(on, tmp_path, monkeypatch):
    import numpy as np

    from pixelreg.experiment.jobs import run_jobs
    from pixelreg.experiment.presets import PRESETS
    from pixelreg.experiment.store import temporary_store
    from pixelreg.training.recipe import Recipe
    from pixelreg.training.runs import Run

    raw = tmp_path / "data" / "mnist" / "raw"
    raw.mkdir(parents=True)
    for s, n in (("train", 60), ("t10k", 20)):
        (raw / f"{s}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03"
            + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28))
            + np.random.default_rng(0).integers(0, 256, n * 784, np.uint8).tobytes()
        )
        (raw / f"{s}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + n.to_bytes(4, "big") + bytes(i % 10 for i in range(n))
        )
    monkeypatch.setenv("PIXELREG_DATA", str(tmp_path / "data"))  # here, not on the workers
    on.run(partial(os.environ.pop, "PIXELREG_DATA", None))
    with temporary_store():
        recipe = Recipe.from_dict(PRESETS["smoke"]).replace(dataset="mnist", n_train=None, alpha=0)
        with pytest.raises(
            FileNotFoundError,
            match=r"mnist train not found .* \(worker tcp://127.0.0.1:\d+, plain, seed 0\)",
        ):
            run_jobs(Run("plain", recipe, recipe.key()).jobs())


def test_a_scheduler_that_is_not_there_is_said_soon():
    from pixelreg.experiment.cluster import connect

    with socket.socket() as mute:  # takes connections and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for where in ("tcp://127.0.0.1:1", f"tcp://127.0.0.1:{mute.getsockname()[1]}"):
            start = time.time()
            with pytest.raises(ConnectionError, match="no scheduler answers there"):
                connect(where)
            assert time.time() - start < 5, where


@pytest.mark.skipif(not FULL, reason="make attack")
def test_a_killed_scheduler_loses_nothing(alone, tmp_path):
    from pixelreg.experiment import cluster, jobs
    from pixelreg.experiment.store import temporary_store

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | dict(PIXELREG_STORE="", OMP_NUM_THREADS="1")

    def start(*args):
        return subprocess.Popen(
            [sys.executable, "-m", *args],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    scheduler = start(
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-dashboard",
    )
    worker = start(
        "distributed.cli.dask_worker",
        f"tcp://127.0.0.1:{port}",
        "--nthreads",
        "1",
        "--nworkers",
        "2",
        "--no-dashboard",
    )
    try:
        for _ in range(60):
            try:
                client = cluster.connect(f"tcp://127.0.0.1:{port}")
                break
            except ConnectionError:
                time.sleep(1)
        client.wait_for_workers(2, timeout=120)

        def executor(todo, told):
            def killing(job, said):
                told(job, said)
                scheduler.kill()  # after the first job

            cluster.on_cluster(todo, killing, client)

        with temporary_store() as folder:
            jobs.set_executor(executor)
            with pytest.raises(
                RuntimeError, match="the scheduler is gone; what was finished is kept: run again"
            ):
                grid()
            jobs.set_executor(None)
            kept = sum(1 for p in (folder / "runs").rglob("done.json"))
            assert kept >= 1
            table, bits = grid()  # on this machine
            assert bits == alone[1]
        print(f"\nscheduler killed with {kept} entries finished; nothing lost, the same bits after")
    finally:
        jobs.set_executor(None)
        for p in (scheduler, worker):
            p.kill()
            p.wait()
