"""What a language model says at each evaluation: the prompts of the config, continued."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.models.build import read_model_config
from raytrain.models.generation import next_tokens
from raytrain.models.prompts import Prompt
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import Task
from raytrain.tasks.predicting import Generating, room_for_prompt, stop_ids


@dataclass(frozen=True)
class Sampler:
    """Continues `task.sample_prompts`."""

    prompts: list[tuple[str, list[int]]]
    """The last text of each prompt, and its tokens."""
    task: Generating
    tokenizer: Any
    config: Any
    """That of the task."""
    seed: int

    @classmethod
    def of(cls, config: RunConfig, task: Task) -> "Sampler | None":
        """None: the config asks for no samples. Raises ConfigError for a prompt that can't be used, and when the model
        has no room for what would follow one."""
        asked = getattr(config.task, "sample_prompts", [])
        if not asked or not isinstance(task, Generating):
            return None
        tokenizer = load_tokenizer(config.model)
        prompts = []
        for place, one in enumerate(asked):
            try:
                ids = task.prompt_ids(one, tokenizer)
            except ConfigError as error:
                raise ConfigError(f"task.sample_prompts[{place}]: {error}") from None
            prompts.append((one if isinstance(one, str) else one[-1]["content"], ids))
        try:
            positions = getattr(read_model_config(config.model), "max_position_embeddings", None)
            room_for_prompt(positions, config.task.sample_max_new_tokens)  # type: ignore[union-attr]
        except ConfigError as error:
            raise ConfigError(f"task.sample_max_new_tokens: {error}") from None
        return cls(prompts, task, tokenizer, config.task, config.seed)

    @torch.compiler.set_stance("force_eager")
    def sample(self, module: Any, on_token: Callable[[], None]) -> list[dict[str, str]]:
        """For each prompt `prompt` and `text`. Every worker generates all of them, one by one, in the same number of
        forward passes, since ZeRO stage 3 gathers weights in each; so they do not depend on the number of workers.

        `on_token` is called after each token.
        """
        was_training, most = module.training, self.config.sample_max_new_tokens
        module.eval()
        stops, found = stop_ids(module, self.tokenizer), []
        room = room_for_prompt(getattr(module.config, "max_position_embeddings", None), most)
        for number, (told, ids) in enumerate(self.prompts):
            ids = ids if room is None else ids[-room:]
            prompt = Prompt(ids, most, self.config.sample_temperature, seed=self.seed, number=number)
            tokens = []
            for (token,) in next_tokens(module, [prompt], stops, is_fixed=True):
                on_token()
                if token is not None:
                    tokens.append(token)
            found.append({"prompt": told, "text": self.tokenizer.decode(tokens, skip_special_tokens=True)})
        module.train(was_training)
        return found
