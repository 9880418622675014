"""The command `raytrain chat`."""

from typing import Annotated

import typer


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run's folder or name, a sweep's folder, or a best/ folder."),
    ],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt of the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most probable token; more draws others too.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Draw among the most probable tokens with this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Talk to a trained language model in the terminal. /reset begins anew, /quit or Ctrl-D ends.

    A model of task.kind=causal_lm continues each line. On a pipe, each line is a question, and answers are printed.
    """
    from raytrain.inference.card import find_model, read_card
    from raytrain.inference.completing import Asked, generating_task
    from raytrain.inference.predictor import Predictor, predicting_task
    from raytrain.terminal.chat import Conversation

    card = read_card(find_model(model))
    generating_task(predicting_task(card.config()), card.format)
    predictor = Predictor.load(card)
    Conversation(predictor, Asked("", max_new_tokens, temperature, top_p, seed), system).run()
