"""Whether the model's layers are compiled (training.compile)."""

from raytrain.config import TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.models.compiled import compile_layers, layers_of, why_no_compiler
from raytrain.training.agreement import Control
from raytrain.training.run_log import RunLog


def compile_if_wanted(engine: Engine, training: TrainingConfig, control: Control, log: RunLog) -> None:
    """Compile the layers of the engine's model if `training.compile` says so and it can be done on every worker; else
    say why not. Collective."""
    if not training.compile:
        return
    reason: str | None
    if engine.zero_stage == 3:
        reason = "at ZeRO stage 3 a layer's parameters come and go while it runs"
    elif not layers_of(engine.module):
        reason = f"{type(engine.module).__name__} has no list of layers (nn.ModuleList)"
    else:
        reason = next((one for one in control.gather(why_no_compiler(engine.device)) if one is not None), None)
    log.event("compile", is_used=reason is None, reason=reason)
    if reason is None:
        compile_layers(engine.module)
