import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_examples_of_the_page_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "252 (" in capsys.readouterr().out
