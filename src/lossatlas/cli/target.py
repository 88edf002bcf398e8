"""What the commands on single models have in common: checkpoints, model, data, and how the loss is evaluated."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True, kw_only=True)
class Target:
    """Checkpoints of one architecture, the data, and the loss as a function of the parameters."""

    weights: Annotated[
        list[Path],
        typer.Argument(
            help="Weights: safetensors, a state_dict saved by torch.save, or a folder store/train/../KEY of a "
            "run. The first is the model itself.",
            metavar="WEIGHTS...",
            readable=False,  # whoever opens it says what is wrong
        ),
    ]
    model: Annotated[str, typer.Option(help="A name, torchvision:NAME, or module:function of your own.")]
    data: Annotated[str, typer.Option(help="A name, or module:function of your own.")]
    out: Annotated[Path, typer.Option(help="The folder for the results and figures.")]
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the model, such as width=128; may be repeated.", metavar="KEY=VALUE"),
    ] = None
    data_path: Annotated[str | None, typer.Option(help="Where the files of the data are.")] = None
    data_option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the data, such as limit=1000; may be repeated.", metavar="KEY=VALUE"),
    ] = None
    loss: Annotated[str, typer.Option(help="A name, or module:function of your own.")] = "cross_entropy"
    part: Annotated[str, typer.Option(help="Which samples: train or test.")] = "train"
    images: Annotated[
        int | None,
        typer.Option(
            help="The first N of them, and of the training samples for recalibrate [default: 1000 or all if "
            "fewer; connect: all].",
            min=1,
        ),
    ] = None
    batchnorm: Annotated[
        str | None,
        typer.Option(
            help="BatchNorm uses its running statistics (eval), re-estimated ones at every point (recalibrate), "
            "or those of each batch (batch) [default: eval; connect, compare and plane: recalibrate]."
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(help="Of training, and of the batches that BatchNorm statistics are taken of.", min=1)
    ] = 128
    seed: Annotated[int, typer.Option(help="Of everything that is random.", min=0)] = 0
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"


def targeted(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `function(target, *, ...)` the options of Target beside its own, as Typer reads them."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        from lossatlas.cli.output import catch_termination

        catch_termination()
        target = Target(**{field.name: given.pop(field.name) for field in fields(Target)})
        function(target, **given)

    hints = get_type_hints(Target, include_extras=True)
    shared = inspect.signature(Target).parameters.values()
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    parameters = [p.replace(annotation=hints[p.name]) for p in shared] + own
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
