"""Keys that never change and that everyone knows: for simulations, never for anything real.

An elliptic-curve key is derived from a label; RSA keys cannot be made quickly, so there are
three of them, with their primes written down here.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec, rsa

_AK_P = (
    "fe098585ff78257bacf07557a13570f80b689f9ea5337fb58209769bd21e48e7222afabc6f9784f8d4d4cd8a"
    "a7cb79d22aa2212844667c06304b2e5eed116c505fca1a5e78abc62944d8bc8ea4ebb1378b0d0bd7867839e0"
    "3dd7bdc515fcf12410d27b946772414f0741751bc1e447ec208e33da8dcb101aa69651c40d28a595"
)
_AK_Q = (
    "eee4fe267fd2e1dd99bbf9629a723088bc323bd67273b3f800e519981440ffe2650dd707e95adce046f83dea"
    "329f875f1b732bd06e3a5f971a15bded71bb8404700a405105124d6f7a977db5973d61ac798fef026381bc82"
    "8a3169d6432c017415ababba41d0833bc7e670f14a9b23ff5a5b77111cdf35c520d02c3a5d988163"
)
_EK_P = (
    "c8266cdf527b2d7f5b38e5ab5d8b603170374bff9ccea28aacda3d58e5768d7454bd9ce6048ac392cee73675"
    "aed76920471460f5a67acba6a7f9d1546b038a06c9d89ef5f529731b5ab8e6dfa5ad0e1c1e8ffedd3bcfcb93"
    "5ff7a490f634e2ae1e2a1a6f2684fb419530b0d20fdde00acb4ac500f06885429012342c98a787a7"
)
_EK_Q = (
    "c1efcccc7fc2f18590410e3d08fbbcd442aa05ae9ab0d3df97ddfce8b62073e3db0a513e328a29cd9ed5bf69"
    "7ff798517219e3b6af393fab0fa72338b756aeb936daf2186b0cf214eb2951a7b9b1cf9c411c6b9242d7e25a"
    "dbd28f95fa81b44beb975adf1b736a6d7000a68c3d0a98bca9c6031aed56b5475b15360e6fe8633f"
)
_STRANGER_P = (
    "e56e26c7855d113fd90bb491567d8a957a5e214025da6d3ffd8103eb41c446c309ce4a938c27aef7aec0ba83"
    "8699d42a1424b72589467ee30d09fd935783da8f2224f6cee04055d96f3c0d6fb6919be9b5bcca2dce429cc2"
    "79d4109a1bc88a2f3576f57a39fbec968e25e23d602b6ddfb203bbedbe120f57a7386db86212c68d"
)
_STRANGER_Q = (
    "b6e38e973dd9e16d3cae9e8693a7d05eb5b20b95675540efa672cda88a0f60dd17a0f202c673ddc75e97f7a3"
    "d5d1116bf55e985f83bcd28bba17d9e5db6f60da84bdeee629f61ac649e7c82e86d24b60335d0857e82ca29b"
    "266fc45ca61189e9c5823a4974643b24314c9040db11a3a38c7751d0b6136f687bf8d69e2e674275"
)
_RSA = {"ak": (_AK_P, _AK_Q), "ek": (_EK_P, _EK_Q), "stranger": (_STRANGER_P, _STRANGER_Q)}
RSA_LABELS = tuple(_RSA)
"""The labels that :func:`rsa_key` knows."""
_ORDER_BITS = {"secp256r1": 256, "secp384r1": 384, "secp521r1": 521}


def rsa_key(label: str) -> rsa.RSAPrivateKey:
    """Return the RSA-2048 key called ``label`` (one of :data:`RSA_LABELS`, else KeyError)."""
    p, q = (int(prime, 16) for prime in _RSA[label])
    e = 65537
    d = rsa.rsa_recover_private_exponent(e, p, q)
    numbers = rsa.RSAPrivateNumbers(
        p,
        q,
        d,
        rsa.rsa_crt_dmp1(d, p),
        rsa.rsa_crt_dmq1(d, q),
        rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(e, p * q),
    )
    return numbers.private_key()


def ecc_key(label: str, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """Return the key of ``label`` on P-256, P-384 or P-521: the same for the same label."""
    seed = hashlib.sha512(f"undercroft.testing {curve.name} {label}".encode()).digest()
    # One bit less than the order has: always in range.
    bits = min(512, _ORDER_BITS[curve.name] - 1)
    return ec.derive_private_key(int.from_bytes(seed, "big") >> (512 - bits), curve)
