"""Every public function, class and method of awmkit."""

import inspect
import warnings
from typing import Any

import awmkit
import awmkit.analysis as analysis
import awmkit.gym
import awmkit.learning.ascents as ascents
import awmkit.learning.minari
import awmkit.learning.tensorboard
import awmkit.methods
import awmkit.mjx
import awmkit.models.backbones
import awmkit.plot as plot
import awmkit.scores as scores
import awmkit.tasks as tasks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Packages that rejax imports raise warnings.
    import awmkit.baselines

MODULES = (
    awmkit,
    analysis,
    awmkit.baselines,
    awmkit.gym,
    awmkit.learning,
    ascents,
    awmkit.learning.minari,
    awmkit.learning.tensorboard,
    awmkit.methods,
    awmkit.mjx,
    awmkit.models,
    awmkit.models.backbones,
    plot,
    scores,
    tasks,
)


def public() -> dict[str, Any]:
    """Return every public function, class and method of awmkit that is not abstract, by name."""
    found = {}
    for thing in (getattr(module, name) for module in MODULES for name in module.__all__):
        if inspect.isfunction(thing):
            parts = [part for part in thing.__module__.split(".")[1:] if not part.startswith("_")]
            found[".".join([*parts, thing.__name__])] = thing
        elif isinstance(thing, type) and not inspect.isabstract(thing):
            if thing is awmkit.Paths or any(
                "Float[" in str(p.annotation) for p in inspect.signature(thing).parameters.values()
            ):
                found[thing.__name__] = thing
            for cls in (cls for cls in thing.__mro__ if cls.__module__.startswith("awmkit")):
                for method, f in vars(cls).items():
                    hidden = method.startswith("_") and method != "__call__"
                    if not hidden and inspect.isroutine(f) and not getattr(f, "__isabstractmethod__", False):
                        found[f"{cls.__name__}.{method}"] = f
    return found
