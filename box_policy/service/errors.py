"""What the service answers when it can't do what it is asked."""

import errno
from typing import Any, Final

from box_policy.control.http.answers import ApiError
from box_policy.policy.quoting import quoted

STATUSES: Final = {
    "box_unknown": 404,
    "busy": 503,
    "closing": 503,
    "box_paused": 409,
    "box_failed": 500,
    "image_refused": 422,
    "keep_alive": 409,
    "name_taken": 409,
    "not_supported": 501,
    "not_text": 422,
    "policy_invalid": 422,
    "request_invalid": 422,
    "runtime_missing": 422,
    "snapshot_unknown": 404,
    "snapshot_unusable": 409,
    "snapshot_too_large": 413,
    "storage_full": 507,
    "too_many_boxes": 429,
    "too_many_programs": 429,
}
"""Every error of the service's own, beside those of the endpoint, and its status."""

_FILE_STATUSES: Final = {
    errno.ENOENT: ("file_unknown", 404),
    errno.EACCES: ("file_forbidden", 403),
    errno.EPERM: ("file_forbidden", 403),
    errno.EROFS: ("file_forbidden", 403),
    errno.EFBIG: ("file_too_large", 413),
    errno.ENOSPC: ("box_full", 507),
    errno.EDQUOT: ("box_full", 507),
}
"""What the box's kernel says of a file, as an error of the service. Everything else is a conflict."""


def service_error(code: str, message: str, **more: Any) -> ApiError:
    """An error of the service's own, to be raised."""
    return ApiError(code, message, status=STATUSES[code], **more)


def file_error(error: OSError) -> ApiError:
    """What the box's kernel said of a file."""
    code, status = _FILE_STATUSES.get(error.errno or 0, ("file_conflict", 409))
    path = f"{quoted(str(error.filename))}: " if error.filename else ""
    return ApiError(code, f"{path}{error.strerror or 'the operation failed'}", status=status)
