"Robustness by pixel similarities: a workbook of the paper, and its regularizer for any network"
__version__ = "0.1.0"
from importlib import import_module as _import

_FACE = dict(SimilarityRegularizer="learning.regularizer", Recipe="learning.recipe", fit="learning.runs", load="learning.runs", Images="images.sets", ImageSet="images.sets") # what is asked for is imported then
__all__ = [*_FACE]

def __getattr__(name):
    if name in _FACE: return getattr(_import(f"pixelreg.{_FACE[name]}"), name)
    raise AttributeError(f"module 'pixelreg' has no attribute {name!r}; it offers {', '.join(_FACE)}")

def __dir__(): return sorted([*globals(), *_FACE])
