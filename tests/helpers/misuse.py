"""Check that a wrong call raises an error of one clear sentence."""

import jaxtyping
import pytest


def says(misuse, message):
    """Assert that `misuse()` raises a `ValueError` of one sentence that matches the regular expression `message`."""
    jaxtyping.config.update("jaxtyping_disable", True)  # Users run without the type checks of the tests.
    try:
        with pytest.raises(ValueError, match=message) as error:
            misuse()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert len(str(error.value)) < 600  # It does not print arrays.
