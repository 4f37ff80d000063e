"Robustness by pixel similarities: a workbook of the paper, and its regularizer for any network"
__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
import warnings as _warnings

if TYPE_CHECKING:  # for type checkers and completion: nothing is imported before it is asked for
    from .data.datasets import Images, ImageSet
    from .data.registered import register_set
    from .evaluation.evaluation import evaluate
    from .regularizer.layer_axes import suggest_layers
    from .regularizer.lightning import SimilarityCallback
    from .regularizer.loss import SimilarityRegularizer
    from .targets.registered import register_target
    from .training.recipe import Recipe
    from .training.runs import load_model, train_runs

__all__ = [
    "SimilarityRegularizer",
    "suggest_layers",
    "SimilarityCallback",
    "evaluate",
    "Recipe",
    "train_runs",
    "load_model",
    "Images",
    "ImageSet",
    "register_set",
    "register_target",
]

_MODULE_OF = {
    "SimilarityRegularizer": "regularizer.loss",
    "suggest_layers": "regularizer.layer_axes",
    "SimilarityCallback": "regularizer.lightning",
    "evaluate": "evaluation.evaluation",
    "Recipe": "training.recipe",
    "train_runs": "training.runs",
    "load_model": "training.runs",
    "Images": "data.datasets",
    "ImageSet": "data.datasets",
    "register_set": "data.registered",
    "register_target": "targets.registered",
}
_RENAMED = {"fit": "train_runs", "load": "load_model"}  # old name: new name


def __getattr__(name):
    if name in _RENAMED:
        new = _RENAMED[name]
        _warnings.warn(f"pixelreg.{name} is now pixelreg.{new}", DeprecationWarning, stacklevel=2)
        return __getattr__(new)
    if name not in _MODULE_OF:
        offered = ", ".join(__all__)
        raise AttributeError(f"module 'pixelreg' has no attribute {name!r}; it offers {offered}")
    try:
        module = _import_module(f"pixelreg.{_MODULE_OF[name]}")
    except ModuleNotFoundError as e:
        cure = "pip install 'pixelreg[attacks]'"
        raise ImportError(f"`{name}` needs {e.name}: {cure}") from e
    return getattr(module, name)


def __dir__():
    return sorted([*globals(), *__all__])
