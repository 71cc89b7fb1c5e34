"""Facts that cross files: what older studies wrote still reads."""

import pytest
from pydantic import ValidationError

from autocompress.records import Target


def test_the_one_batch_size_that_older_studies_wrote_is_read() -> None:
    old = '{"runtime": "onnxruntime", "device": "cpu", "batch_size": 8, "threads": 2, "dtype": "float32"}'
    assert Target.model_validate_json(old) == Target(batch_sizes=(8,), threads=2)


def test_a_target_is_read_back_as_it_was_written() -> None:
    target = Target(batch_sizes=(1, 8, 32), threads=2)
    assert Target.model_validate_json(target.model_dump_json()) == target
    assert Target.model_validate(target.model_dump(mode="json")) == target


def test_batch_sizes_are_ascending_and_each_is_there_once() -> None:
    target = Target(batch_sizes=(32, 1, 8, 1))
    assert target.batch_sizes == (1, 8, 32)
    assert target.batch_size == 1


@pytest.mark.parametrize(("sizes", "words"), [((1,), "1"), ((8, 1), "1 and 8"), ((1, 8, 32), "1, 8 and 32")])
def test_a_target_tells_its_batch_sizes_in_words(sizes: tuple[int, ...], words: str) -> None:
    assert str(Target(batch_sizes=sizes)) == f"onnxruntime on cpu, batch {words}, 1 thread"


@pytest.mark.parametrize("wrong", [{"batch_sizes": ()}, {"batch_sizes": (1, 0)}, {"batch_size": 0}, {"batch_size": 1, "batch_sizes": (1,)}])
def test_batch_sizes_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        Target.model_validate(wrong)
