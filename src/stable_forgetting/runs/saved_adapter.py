"""The adapter folder of a run: what PEFT saves, and a README that says what it is."""

from __future__ import annotations

from pathlib import Path
from string import Template

from peft import PeftModel

from stable_forgetting import processes
from stable_forgetting.config import RunConfig
from stable_forgetting.records import write_text

_README = Template("""\
---
library_name: peft
---

# The adapter of the run "$name"

A low-rank adapter (bound $bound, rank $rank, omega $omega) from a run that makes a model forget some examples, with
the objective $objective. What it does was measured: see `record.json` and `report.html` of the run. It belongs on its
own base model:

    $base

In Python, with `stable-forgetting` installed:

```python
from transformers import $auto_class

from stable_forgetting import load_adapter

model = load_adapter($auto_class.from_pretrained("$place"), "FOLDER_OF_THE_ADAPTER")
```

On the command line, into plain weights that need neither PEFT nor stable-forgetting:

    forget merge RUN_DIRECTORY --out FOLDER
""")


def save_adapter(model: PeftModel, folder: Path, *, base: str, config: RunConfig) -> None:
    """Save an adapter as PEFT does, with a README in place of PEFT's model card, which says nothing.

    All processes call it: reading the weights of a shared model makes every one let go of gathered ones.

    Args:
        model: The model with the adapter.
        folder: Where it is saved.
        base: Where the base model came from, in words.
        config: Of the run.
    """
    model.save_pretrained(folder, is_main_process=processes.is_main_process())
    if not processes.is_main_process():
        return
    classes = {"language": "AutoModelForCausalLM", "image": "AutoModelForImageClassification"}
    text = _README.substitute(
        name=config.name,
        bound=config.adapter.bound,
        rank=config.adapter.rank,
        omega=f"{config.adapter.omega:g}",
        objective=config.objective.name,
        base=base,
        auto_class=classes[config.task],
        place=model.active_peft_config.base_model_name_or_path or "FOLDER_OF_THE_BASE_MODEL",
    )
    write_text(folder / "README.md", text)
