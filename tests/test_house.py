"""The house: which file may import which."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))

from code_lines import FILES, code_lines, imports  # noqa: E402


def test_every_file_has_its_place():
    there = [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py"), *ROOT.glob("studies/*.py")]
    assert {str(path.relative_to(ROOT)) for path in there} == set(FILES)


def test_a_file_imports_only_files_above_it():
    """So there is no circle, lab/ imports nothing of the root, and neither generator nor judge knows the other."""
    for i, name in enumerate(FILES):
        assert set(imports(ROOT / name)) <= set(FILES[:i]), name
    for name in ("graph.py", "datagen.py", "verify.py"):
        assert set(imports(ROOT / name)) <= {"lab/options.py", "graph.py"}, name


def test_code_lines_leave_out_what_is_no_code(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""Two\nlines."""\n\n# why\nx = [\n    1,\n]\n\n\ndef f():\n    """What."""\n    return x\n'
    )
    assert code_lines(path) == {5, 6, 7, 10, 12}
