"""The dated records of speed: a run's numbers are added, and their page says the last of each beside the one before."""

from tests.house import speed


def measured(**changed):
    known = {"date": "2026-01-02", "commit": "abc", "machine": "a processor", "busy": "0.5"}
    return known | {"benchmark": "patching", "quantity": "ratio", "value": "2"} | changed


def test_a_run_is_added_to_the_records(tmp_path):
    file = tmp_path / "speed.csv"
    rows = speed.rows_of({"patching": {"ratio (aim 40)": 84.94444, "ours, s": 0.5}, "loading": {"first, s": 3}})
    speed.append(rows[:2], file)
    speed.append(rows[2:], file)
    found = speed.read(file)
    assert [(row["benchmark"], row["quantity"], row["value"]) for row in found] == [
        ("patching", "ratio (aim 40)", "84.94"), ("patching", "ours, s", "0.5"), ("loading", "first, s", "3")
    ]  # fmt: skip
    assert all(row["date"] and row["commit"] and "cores" in row["machine"] for row in found)
    assert all(float(row["busy"]) >= 0 for row in found)


def test_the_page_has_the_last_of_each_beside_the_one_before():
    rows = [measured(), measured(date="2026-02-03", value="3"), measured(quantity="a | b", benchmark="other")]
    text = speed.page(rows)
    assert "| patching | ratio | 3 | 2026-02-03 | `abc` | 0.5 | 2 (2026-01-02) |" in text
    assert "| other | a \\| b | 2 |" in text
    assert text.count("| patching |") == 1


def test_ratios_are_drawn(tmp_path):
    speed.draw([measured(), measured(date="2026-02-03"), measured(quantity="ours, s")], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_page_is_of_the_committed_records():
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page(speed.read())
