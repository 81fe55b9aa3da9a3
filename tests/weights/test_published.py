"""What a card and a path in the Hub's cache say of a source."""

import pytest

from samerge.weights.published import Card, Published, published

COMMIT = "4d5c" * 10


def card(folder, header, body="# A model\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{header}---\n{body}", encoding="utf-8")
    return folder


def read(folder):
    return published(folder, str(folder), "the adapter 'math'")


def test_a_licence_and_a_use(tmp_path):
    folder = card(
        tmp_path, "license: apache-2.0\npipeline_tag: text-generation\nlicense_link: https://x.org/l\ntags: [a]\n"
    )
    assert read(folder) == Published(card=Card("apache-2.0", None, "https://x.org/l", "text-generation"))
    file = folder / "math.safetensors"
    file.write_bytes(b"")
    assert read(file) == Published()  # the folder of a file may hold anyone's card


@pytest.mark.parametrize("header", ["", "tags: [lora]\n", "license: [mit, apache-2.0]\n", "license_name: x\n", "- 1\n"])
def test_a_card_that_says_nothing_of_it(tmp_path, header):
    assert read(card(tmp_path, header)) == Published()


def test_no_card_and_a_card_without_a_header(tmp_path):
    assert read(tmp_path) == Published()
    (tmp_path / "README.md").write_text("# A model\n---\nlicense: mit\n---\n")
    assert read(tmp_path) == Published()


@pytest.mark.parametrize(
    "header",
    [
        "license: {mit\n",
        "license: mit\nlicense: apache-2.0\n",
        "license: null\n",
        "license: ~\n",
        "a:\n  license: mit\n",
        "license: >\n  mit\n",
        "x: !!bool maybe\ny: !!timestamp foo\nlicense: !!int ''\n",
        "x: " + "[" * 100_000 + "\n",
    ],
)
def test_what_only_a_parser_of_yaml_would_read_is_left_open(tmp_path, header):
    assert read(card(tmp_path, header)) == Published()


@pytest.mark.parametrize("line", ["license: mit  # ours", "license:   'mit'", 'license: "mit" ', "license: mit\r"])
def test_the_ways_to_write_a_word(tmp_path, line):
    assert read(card(tmp_path, f"tags:\n- a\n{line}\nmodel-index:\n- name: x\n")).card == Card("mit")


def test_a_card_that_is_no_text_or_no_file(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert "cannot be read" in read(tmp_path).notes[0]
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert "only regular files" in read(tmp_path).notes[0]


@pytest.mark.parametrize("value", ["<script>", "mit\nx: y", "a" * 200, "-x", "12: {}", "[click](http://x)"])
def test_what_is_no_word_is_not_taken(tmp_path, value):
    import yaml

    folder = card(tmp_path, yaml.safe_dump({"license": value, "pipeline_tag": value, "license_link": "a b"}))
    assert read(folder) == Published()
    with pytest.raises(ValueError, match="license is"):
        Card(license=value)


def test_the_commit_of_a_repository(tmp_path):
    snapshot = tmp_path / "models--ada--loras" / "snapshots" / COMMIT
    inner = card(snapshot, "license: mit\n") / "math"
    inner.mkdir()
    for path in (snapshot, inner):
        assert published(path, "ada/loras/math@main", "it") == Published(COMMIT, Card("mit"))
    # a folder that the user named is local, wherever it lies; the card beside it counts
    assert published(snapshot, str(snapshot), "it") == Published(card=Card("mit"))
    assert published(inner, str(inner), "it") == Published()
