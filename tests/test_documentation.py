"""README, pages and example configs: the code in them runs, the links lead somewhere, nothing is left out."""

import json
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python
from transformers import AutoModelForCausalLM

from stable_forgetting.bench.methods import PROBLEMS_DIR
from stable_forgetting.cli.main import app
from stable_forgetting.config import RunConfig, load_config, parse_config, read_yaml
from stable_forgetting.objectives import FORGET_TERMS, OBJECTIVES, RETAIN_TERMS
from tiny_problem import make_language_problem

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text()))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    model = str(make_language_problem(tmp_path).model)
    first, second, fresh = (
        re.sub(r'^name = ".*"$', f"name = {model!r}", block, flags=re.MULTILINE) for block in python_blocks(README)
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(first, str(README), "exec"), names)
    once = logits_of(names["merged"])
    exec(compile(second, str(README), "exec"), names)
    loaded: dict[str, Any] = {}
    exec(compile(fresh, str(README), "exec"), loaded)
    torch.testing.assert_close(logits_of(loaded["model"]), once, rtol=0, atol=1e-4)
    twice = logits_of(AutoModelForCausalLM.from_pretrained("forgetful-model"))
    assert (twice - once).abs().max() > 1e-2
    result = names["result"]
    assert all(layer.holds for layer in result.certificate)
    assert max(layer.largest_entry for layer in result.certificate) > 0
    assert (tmp_path / "forgetful-adapter" / "adapter_model.safetensors").is_file()
    assert capsys.readouterr().out.count("of at most") == len(result.certificate)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page):
    lost = []
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_pages_are_in_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "metrics"} - {index}
    assert pages <= linked


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_example_configs_parse_and_begin_with_their_command(path):
    command = path.read_text().splitlines()[0]
    assert command == f"# forget run {relative(path)}"
    assert isinstance(load_config(path)[0], RunConfig)


def test_all_settings_that_own_data_offers_in_comments_are_allowed_together():
    text = (ROOT / "configs" / "own_data.yaml").read_text()
    head, start, body = text.partition("name: own-data")
    offered = re.sub(r"^( *)# (\w+: )", r"\1\2", body, flags=re.MULTILINE)
    config = parse_config(yaml.safe_load(head + start + offered))
    assert config.model.finetune is not None
    assert config.training.stop


def test_the_readme_names_every_command():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    names |= {str(group.name) for group in app.registered_groups}
    documented = set(re.findall(r"^\| `forget (\w+)", README.read_text(), re.MULTILINE))
    assert documented == names


def test_the_readme_gives_every_option_that_a_command_needs():
    rows = re.findall(r"^\| `forget (\w+)( [^`]*)?`", README.read_text(), re.MULTILINE)
    commands = typer.main.get_command(app).commands
    for name, given in rows:
        needed = [option.opts[0] for option in commands[name].params if option.required and option.opts[0][0] == "-"]
        assert [option for option in needed if option not in given] == [], name


@pytest.mark.parametrize("page", ["tofu.md", "class_deletion.md"])
@pytest.mark.parametrize("kind", ["objectives", "bounds", "targets"])
def test_pages_of_benchmarks_name_every_choice(page, kind):
    text = (ROOT / "docs" / page).read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `--{kind}` |"))
    choices = read_yaml(PROBLEMS_DIR / "methods.yaml")[kind]
    assert [name for name in choices if f"`{name}`" not in row] == []


def test_concepts_has_every_objective_with_its_formulas():
    page = (ROOT / "docs" / "concepts.md").read_text()
    for name, (forget, retain, _) in OBJECTIVES.items():
        retain_cell = f"`{RETAIN_TERMS[retain].formula}`" if retain else "none"
        forget_cell = f"`{FORGET_TERMS[forget].formula}`" if forget else "none"
        assert f"| `{name}` | {forget_cell} | {retain_cell} |" in page


def sections() -> dict[str, type[BaseModel]]:
    """Every section of the config by the heading it has in the page of options."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[tuple[str, type[BaseModel]]] = [("run", RunConfig)]
    while waiting:
        heading, section = waiting.pop()
        if section in found.values():
            continue
        found[heading] = section
        for name, field in section.model_fields.items():
            inner = inner_section(field.annotation)
            if inner is not None:
                waiting.append((inner_heading(heading, name), inner))
    return found


def inner_heading(heading: str, name: str) -> str:
    """The sets of the data have one form and share a heading."""
    if heading == "data":
        return "data.SET"
    return name if heading == "run" else f"{heading}.{name}"


def inner_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for argument in get_args(annotation) if (inner := inner_section(argument))), None)


def default_cell(field: Any) -> str | None:
    """What the page has to say about a field without a plain default; None for one that has."""
    if field.is_required():
        return "*required*"
    return "*section*" if isinstance(field.default, BaseModel) else None


def documented_options() -> dict[str, dict[str, str]]:
    """Headings of the page, and under each the rows: name and default as written."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(\w+)` \| (`[^`]+`|\S+) \| \S.* \|$", re.MULTILINE)
    return {heading: dict(row.findall(text)) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_page_of_options_has_every_section():
    assert {heading for heading, rows in documented_options().items() if rows} == set(sections())


@pytest.mark.parametrize(("heading", "section"), sections().items(), ids=list(sections()))
def test_the_page_of_options_has_every_option_with_its_default(heading, section):
    documented = documented_options()[heading]
    assert list(documented) == list(section.model_fields)
    for name, field in section.model_fields.items():
        expected, written = default_cell(field), documented[name]
        if expected is not None:
            assert written == expected, name
            continue
        default = field.get_default(call_default_factory=True)
        assert default is not PydanticUndefined
        value = yaml.safe_load(written.strip("`"))
        assert json.dumps(to_jsonable_python(default)) == json.dumps(value) or value == default, name
        assert isinstance(default, NoneType) == (value is None), name
