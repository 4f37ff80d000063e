"The committed ledger is what the committed claims say of the committed tables."

import io
import json
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "figures" / "quick"
DRAW = "draw it again: papermill --cwd nbs nbs/17_claims.ipynb out.ipynb"


def written(table):
    "As `save_figure` writes it, and read again"
    return pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6g")))


@pytest.fixture(scope="module")
def verdicts():
    "The ledger of the folders that the committed one names"
    from pixelreg.claims.ledger import ledger

    saved = pd.read_csv(FOLDER / "x_ledger_stats.csv")
    return saved, ledger(list(dict.fromkeys(saved.folder.dropna())))


def test_the_committed_ledger_has_the_folders_of_the_checkout(verdicts):
    from pixelreg.claims.ledger import evidence_folders

    saved, _ = verdicts
    known = {"quick", "laptop", "paper", "recordings", "h200"}
    assert set(saved.folder.dropna()) == known & set(evidence_folders()), DRAW


def test_the_committed_ledger_is_the_recomputed_one(verdicts):
    saved, found = verdicts
    found = written(found.rename(columns=dict(figure="drawn")))
    saved = saved.drop(columns="figure")
    keys = ["claim", "folder", "dataset"]
    assert saved[keys].fillna("").to_numpy().tolist() == found[keys].fillna("").to_numpy().tolist()
    for column in saved:
        differ = saved[column].ne(found[column]) & ~(saved[column].isna() & found[column].isna())
        if pd.api.types.is_numeric_dtype(found[column]):
            size = found[column].abs().clip(lower=1e-6)
            differ &= ~((saved[column] - found[column]).abs() <= 1e-4 * size)
        assert not differ.any(), f"{column} of {saved[differ].claim.tolist()}: {DRAW}"


def test_the_rows_of_the_committed_ledger_are_the_recomputed_ones(verdicts):
    from pixelreg.claims.ledger import ledger_rows

    saved = pd.read_csv(FOLDER / "x_ledger.csv").drop(columns="figure")
    found = written(ledger_rows(verdicts[1]))
    assert saved.drop(columns="value").equals(found.drop(columns="value")), DRAW
    assert ((saved.value - found.value).abs() <= 1e-4 * found.value.abs().clip(lower=1e-6)).all()


def test_the_committed_claims_are_those_of_the_package():
    from pixelreg.claims.claims import CLAIMS

    saved = json.loads((FOLDER / "x_ledger.json").read_text())["claims"]
    assert saved == json.loads(json.dumps([claim.to_dict() for claim in CLAIMS.values()])), DRAW
