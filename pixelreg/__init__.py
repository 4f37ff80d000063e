"Robustness by pixel similarities: a workbook of the paper, and its regularizer for any network"
__version__ = "0.1.0"
from importlib import import_module as _import

_FACE = dict( # what is asked for is imported then
    SimilarityRegularizer="learning.regularizer", suggest_layers="learning.layout", SimilarityCallback="learning.lightning",
    evaluate="analysis.evaluation", Recipe="learning.recipe", fit="learning.runs", load="learning.runs",
    Images="images.sets", ImageSet="images.sets", register_set="images.registered")
__all__ = [*_FACE]

def __getattr__(name):
    if name in _FACE:
        try: room = _import(f"pixelreg.{_FACE[name]}")
        except ModuleNotFoundError as e: raise ImportError(f"`{name}` needs {e.name}: pip install 'pixelreg[attacks]'") from e
        return getattr(room, name)
    raise AttributeError(f"module 'pixelreg' has no attribute {name!r}; it offers {', '.join(_FACE)}")

def __dir__(): return sorted([*globals(), *_FACE])
