import pytest

from undercroft.securekernel.vtpm.rc import TpmError, rc_name


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x000, "TPM_RC_SUCCESS"),
        (0x01E, "TPM_RC_BAD_TAG"),
        (0x100, "TPM_RC_INITIALIZE"),
        (0x907, "TPM_RC_LOCALITY"),
        (0x902, "TPM_RC_OBJECT_MEMORY"),
        (0x910, "TPM_RC_REFERENCE_H0"),
        (0x18B, "TPM_RC_HANDLE (handle 1)"),
        (0x98E, "TPM_RC_AUTH_FAIL (session 1)"),
        (0x1D5, "TPM_RC_SIZE (parameter 1)"),
        (0x0C4, "TPM_RC_VALUE"),
        (0x99D, "TPM_RC_POLICY_FAIL (session 1)"),
        (0x0BF, "response code 0xbf"),
        (0x7FF, "response code 0x7ff"),
        (0x80280401, "response code 0x80280401"),
    ],
)
def test_names_are_the_specifications(code: int, name: str) -> None:
    assert rc_name(code) == name


def test_an_error_carries_command_code_and_name() -> None:
    error = TpmError("TPM2_Quote", 0x9A2)
    assert (error.command, error.rc, error.base_rc) == ("TPM2_Quote", 0x9A2, 0x0A2)
    assert "TPM2_Quote" in str(error)
    assert "TPM_RC_BAD_AUTH (session 1)" in str(error)
    assert TpmError("TPM2_Quote", 0x907).base_rc == 0x907
