"""mmtune adapts pretrained image-text models to your own data, scores them against their base and merges them.

Reading order, top to bottom, the way one datum travels:

1. ``recipe_schema``     a recipe: its text, its checks, the frozen ``Recipe``
2. ``sources``           where samples come from (named fields, references to images, nothing decoded)
3. ``backbones``         pretrained models: load, encode, embed
4. ``adapters``          what is trained in a backbone, tower by tower
5. ``tasks``, ``losses`` what a batch must say, and how wrong it is
6. ``train_loop``        accumulate, clip, step, log, score, save
7. ``training_run``, ``evaluation_run``, ``export_run``, ``push_run`` ...   one story per command
8. ``finetune``, ``command_line``   argv in, exit code out

``ground`` is what all of them stand on. Importing ``mmtune`` imports none of them and no torch; the names below load
what they need when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtune.evaluation_run import score
    from mmtune.export_run import merge
    from mmtune.learning_rate_run import find_learning_rate
    from mmtune.metrics import metric
    from mmtune.model_loading import load
    from mmtune.predict_run import predict
    from mmtune.push_run import push
    from mmtune.recipe_schema import Recipe, load_recipe
    from mmtune.training_run import fit

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "__version__",
    "find_learning_rate",
    "fit",
    "load",
    "load_recipe",
    "merge",
    "metric",
    "predict",
    "push",
    "score",
]

_HOMES = {
    "Recipe": "recipe_schema",
    "find_learning_rate": "learning_rate_run",
    "fit": "training_run",
    "load": "model_loading",
    "load_recipe": "recipe_schema",
    "merge": "export_run",
    "metric": "metrics",
    "predict": "predict_run",
    "push": "push_run",
    "score": "evaluation_run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmtune' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    value = getattr(importlib.import_module(f"mmtune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
