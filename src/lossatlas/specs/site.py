"""What a user sets once for a cluster: the table `[slurm]` of a site file, under what a spec and a command say."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossatlas.errors import FileError, SpecError
from lossatlas.specs.reading import slurm_section
from lossatlas.specs.schema import Spec
from lossatlas.specs.slurm import Slurm


def slurm_settings(spec: Spec, flags: Mapping[str, Any]) -> Slurm:
    """The settings in force: those of the site file, over them the spec's, over both those of the command.

    Raises FileError or SpecError if the site file or the command has others.
    """
    site = _site()
    over = slurm_section(flags, "--slurm").model_dump(mode="json", exclude_unset=True)
    return slurm_section({**site, **spec.slurm.model_dump(mode="json", exclude_unset=True), **over}, "slurm")


def _site() -> dict[str, Any]:
    """The table of the file that $LOSSATLAS_SITE names, or of ~/.config/lossatlas/site.toml where there is one."""
    named = os.environ.get("LOSSATLAS_SITE")
    path = Path(named).expanduser() if named else Path.home() / ".config" / "lossatlas" / "site.toml"
    if not named and not path.is_file():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"The site file {path} cannot be read ({getattr(error, 'strerror', None) or error}). "
            "Let LOSSATLAS_SITE name a TOML file with a table [slurm], or unset it."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"The site file {path}", [f"it is not valid TOML: {error}"]) from error
    if others := sorted(set(content) - {"slurm"}):
        raise SpecError(f"The site file {path}", [f"{name}: unknown key; allowed is slurm" for name in others])
    section: Mapping[str, Any] = content.get("slurm", {})
    return slurm_section(section, f"The site file {path}").model_dump(mode="json", exclude_unset=True)
