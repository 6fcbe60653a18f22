"""Which type products are computed in where a recipe leaves it to the machine, and what is said of a slow one."""

import dataclasses

from rl.config.sections import Recipe

AUTO = "auto"


def with_precision(recipe: Recipe) -> Recipe:
    """The recipe without `auto`: bfloat16 where that has kernels, else float32. So config.yaml says what a run computes
    in; a resumed one that would compute in another is refused (rl/checkpoint/resumed_recipe.py)."""
    trainer, decode, settled = recipe.trainer, recipe.decode, list[str]()
    if trainer.get("bf16") == AUTO:
        trainer, settled = {**trainer, "bf16": _is_fast(recipe)}, ["trainer.bf16"]
    if decode.dtype == AUTO:
        dtype = "bfloat16" if _is_fast(recipe, decodes=True) else "float32"
        decode, settled = dataclasses.replace(decode, dtype=dtype), [*settled, "decode.dtype"]
    return dataclasses.replace(recipe, trainer=trainer, decode=decode, settled=tuple(settled))


def precision_risk(recipe: Recipe) -> str | None:
    """A sentence for a recipe whose products are in bfloat16 on a CPU that has no kernels for them, else None."""
    asked = {
        "model.dtype": recipe.model.dtype == "bfloat16",
        "trainer.bf16": bool(recipe.trainer.get("bf16")),
        "decode.dtype": recipe.decode.dtype == "bfloat16",
    }
    slow = [key for key in asked if asked[key] and not _is_fast(recipe, decodes=key == "decode.dtype")]
    if not slow:
        return None
    return (
        f"{recipe.source}: {' and '.join(slow)} {'asks' if len(slow) == 1 else 'ask'} for bfloat16, for which this "
        "CPU, without AVX-512, takes ten to a hundred times as long as for float32; set model.dtype and decode.dtype: "
        "float32 and trainer.bf16: false."
    )


def _is_fast(recipe: Recipe, *, decodes: bool = False) -> bool:
    """Whether products of bfloat16 have kernels where the recipe trains, or decodes."""
    import torch  # late: most recipes need none to be read

    from uniar.placement import multiplies_bfloat16

    on_cpu = recipe.trainer.get("use_cpu") or (decodes and recipe.decode.device == "cpu")
    return multiplies_bfloat16(torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu"))
