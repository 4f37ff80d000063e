"Chapters that need no other: on a user's own images, and the bench. Apart from the sequence, so that both are tested at once."

import json
import os

import pytest
from test_chapters import given, papermill


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A store and a folder of figures of their own"
    tmp = tmp_path_factory.mktemp("own")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIXELREG_")}
    env |= dict(
        PIXELREG_STORE=str(tmp / "store"),
        PIXELREG_FIGURES=str(tmp / "figures"),
        PIXELREG_WORKERS="1",
    )
    return dict(tmp=tmp, env=env)


def test_a_folder_of_images_is_a_data_set(place):
    "Pictures of eight pixels a side in class folders: chapter 05, unedited, resizes and classifies them"
    import numpy as np
    from PIL import Image

    folder = place["tmp"] / "my pictures"
    for c in range(3):
        (folder / f"class {c}").mkdir(parents=True)
        for i, x in enumerate(
            np.random.default_rng(c).integers(0, 256, (40, 8, 8), dtype=np.uint8)
        ):
            Image.fromarray(x // 2 + 40 * c).save(folder / f"class {c}" / f"{i}.png")
    done, nb = papermill(
        place,
        *given(dataset=f"folder:{folder}@32", n_train=60, n_test=10, seeds=1),
        *given(arms="unregularized,S_Th", figures="smoke"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a fifth of each class is kept for the test" in json.dumps(nb)
    done, _ = papermill(place, *given(dataset=f"folder:{folder}", n_train=60, seeds=1))
    assert (
        done.returncode != 0 and "images of 25 to 32 pixels a side can be classified" in done.stderr
    )


def test_digits_of_eight_pixels_run_chapters_unedited(place):
    "Drawn like scikit-learn's: sixteen grey levels, a folder for each digit. As they are, and resized where they are classified"
    import numpy as np
    from PIL import Image, ImageDraw

    folder, rng, figures = (
        place["tmp"] / "digits",
        np.random.default_rng(0),
        place["tmp"] / "figures" / "smoke",
    )
    for c in range(10):
        (folder / str(c)).mkdir(parents=True)
        for i in range(20):
            image = Image.new("L", (32, 32))
            ImageDraw.Draw(image).text(
                (6 + rng.integers(0, 5), -2 + rng.integers(0, 5)), str(c), fill=255, font_size=28
            )
            x = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) // 16
            Image.fromarray((x * 17).astype(np.uint8)).save(folder / str(c) / f"{i}.png")
    name = f"folder:{folder}"
    pairs = f"{name}@32:{name}@32,{name}@32:photographs"
    for chapter, figure, parameters in (
        ("00_data", "x_samples", dict(datasets=name)),
        ("01_similarity", "x_similarity", dict(reg_dataset=name)),
        (
            "07_datasets",
            "p_fig05",
            dict(sets=pairs, seeds=1, n_train=100, n_test=20, every_layer=False),
        ),
    ):
        done, nb = papermill(place, *given(**parameters), chapter=chapter)
        assert done.returncode == 0, done.stderr[-3000:]
        caption = (figures / f"{figure}.md").read_text()
        assert (
            "digits" in caption.lower() and "folder:" not in caption and str(folder) not in caption
        )
    assert (
        "digits@32 has no strengths of its own: CIFAR-10's in proportion to the standard deviation of its pixels, up to"
        in json.dumps(nb)
    )
    assert "p_tab2 not drawn: `every_layer`=False" in json.dumps(nb)
    arms = {line.split(",")[2] for line in (figures / "p_fig05.csv").read_text().splitlines()[1:]}
    assert arms == {"unregularized", f"{name}@32", "photographs"}


def test_own_images_run_with_a_presets_numbers(place):
    "Fewer images than the preset asks for: all are taken, which is said once; a number that was given is refused by its name"
    from PIL import Image

    from pixelreg.data.datasets import load_dataset

    folder, images = place["tmp"] / "own", load_dataset("photographs", n=150)
    for i, (x, y) in enumerate(zip(images.x, images.y)):
        (folder / images.classes[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(folder / images.classes[y] / f"{i}.png")
    name = f"folder:{folder}"
    done, nb = papermill(
        place,
        *given(dataset=name, reg_dataset=name, seeds=1, arms="unregularized,S_Th"),
        chapter="04_noise",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = "".join("".join(o.get("text", [])) for c in nb["cells"] for o in c.get("outputs", []))
    for asked, there, split, count in (("n_train", 120, "train", 320), ("n_test", 30, "test", 40)):
        assert (
            text.count(
                f"{asked}: {there} (all there are in {name} ({split}); the preset asks for {count})"
            )
            == 1
        ), text
    for count, least, most in (("n_train", 10, 120), ("n_test", 1, 30), ("n_reg", 2, 120)):
        done, _ = papermill(place, *given(dataset=name, reg_dataset=name, **{count: 2688}))
        assert (
            done.returncode != 0
            and f"{count} must be in [{least}, {most}], got 2688" in done.stderr
        ), done.stderr[-2000:]


def test_bench_runs(place):
    "`make bench` at tiny sizes"
    done, nb = papermill(place, chapter="library/benchmarks/bench")
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(
        "x_bench" in "".join(o.get("text", "")) for c in nb["cells"] for o in c.get("outputs", [])
    )
