"""What a wrong call must say, for the tables of misuses: one clear sentence, and never a trace of the program's inside."""

import jaxtyping
import pytest


def says(misuse, message):
    """Assert that `misuse()` raises a `ValueError` of one sentence that matches `message`, as a user would have it."""
    jaxtyping.config.update("jaxtyping_disable", True)  # The annotations that tests execute would speak first.
    try:
        with pytest.raises(ValueError, match=message) as error:
            misuse()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
