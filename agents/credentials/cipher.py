"""The keys of the encrypted store: in HOME/credential_keys, one a line. The first encrypts, all of them decrypt.

Fernet of the package `cryptography`: authenticated, versioned, and rotated by putting a new key first.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

from agents import private_files
from agents.credentials.base import CredentialError


def key_file() -> Path:
    return Path(settings.HOME) / "credential_keys"


def encrypt(value: str) -> str:
    """Raises CredentialError. The first value ever makes the first key."""
    file = key_file()
    private_files.write_once(file, f"{_new_key()}\n")
    return _cipher(file).encrypt(value.encode()).decode()


def decrypt(ciphertext: str) -> str:
    """Raises CredentialError if no key here fits."""
    file = key_file()
    try:
        return _cipher(file).decrypt(ciphertext.encode()).decode()
    except InvalidToken as error:
        raise CredentialError(f"no key in {file} fits: put the key there that it was encrypted with") from error


def encrypt_anew(ciphertext: str) -> str:
    """The same value under the first key. Raises CredentialError."""
    file = key_file()
    try:
        return _cipher(file).rotate(ciphertext.encode()).decode()
    except InvalidToken as error:
        raise CredentialError(f"no key in {file} fits: put the key there that it was encrypted with") from error


def keys() -> list[str]:
    """Raises CredentialError if others may read the file."""
    return _read(key_file())


def add_key() -> None:
    """From now on a new key encrypts; the old ones still decrypt. Others who have the file need it anew."""
    private_files.write(key_file(), "".join(f"{key}\n" for key in (_new_key(), *keys())))


def keep_first_key() -> None:
    """The others decrypt nothing any more."""
    private_files.write(key_file(), f"{keys()[0]}\n")


def _new_key() -> str:
    return Fernet.generate_key().decode()


def _cipher(file: Path) -> MultiFernet:
    known = _read(file)
    if not known:
        raise CredentialError(f"{file} is missing on this host: copy it from the host that has it")
    try:
        return MultiFernet([Fernet(key) for key in known])
    except ValueError as error:
        raise CredentialError(f"{file} holds a line that is no key") from error


def _read(file: Path) -> list[str]:
    try:
        mode = file.stat().st_mode & 0o777
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"{file} cannot be read: {error}") from error
    if mode & 0o077:
        raise CredentialError(f"{file} may be read by others (mode {mode:o}): chmod 600 {file}")
    return text.split()
