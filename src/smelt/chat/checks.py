"""What every renderer asks of a message before it renders it."""

from __future__ import annotations

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, Privilege, Role

PRIVILEGES: dict[Role, Privilege] = {
    "system": Privilege.SYSTEM,
    "developer": Privilege.DEVELOPER,
    "user": Privilege.USER,
    "assistant": Privilege.ASSISTANT,
    "tool": Privilege.TOOL,
}


def check_message(message: Message) -> None:
    """Raise InvalidRequestError when a field stands on a turn that cannot have it."""
    if message.role not in PRIVILEGES:
        raise InvalidRequestError(f"role {message.role!r} is not one of {', '.join(PRIVILEGES)}", param="messages")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequestError(f"a {message.role} message cannot have tool_calls", param="messages")
    if message.tool_call_id is not None and message.role != "tool":
        raise InvalidRequestError(f"a {message.role} message cannot have a tool_call_id", param="messages")
