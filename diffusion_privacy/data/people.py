"""What a run may write of who is who: names that tell people apart and lead back to nobody."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import numpy as np

_SALT_BYTES = 32


def pseudonyms(identity: np.ndarray) -> list[str]:
    """A name of 16 hexadecimal digits a record: equal within this call for one person, different for two.

    HMAC-SHA256 under a salt that is drawn for this call and kept nowhere. A hash of a patient number alone could be
    undone by trying all numbers; without the salt it cannot, not even by whoever has the workdir and the data. For the
    same reason two calls share no names.

    Args:
      identity: int ``[N]``, see `records.Records`.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    people, inverse = np.unique(np.asarray(identity), return_inverse=True)
    names = [hmac.new(salt, str(int(person)).encode(), hashlib.sha256).hexdigest()[:16] for person in people]
    return [names[i] for i in inverse]
