"""Tool calls with the official client: the model picks a tool, this program runs it, the model answers.

Start a server with `make serve`, then: python examples/tools.py
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


def tool(name: str, description: str, **properties: dict[str, object]) -> dict[str, object]:
    """An OpenAI tool definition with all parameters required."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


TOOLS = [
    tool(
        "get_weather",
        "Get the current weather for a city.",
        city={"type": "string", "description": "Name of the city"},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    tool("set_timer", "Start a timer.", minutes={"type": "integer", "description": "Length in minutes"}),
    tool("track_order", "Look up the status of an order.", order_id={"type": "string", "description": "Order number"}),
]


def run_tool(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """What a real program would do; here each tool answers from a table."""
    if name == "get_weather":
        return {"city": arguments["city"], "temperature": 21, "unit": arguments["unit"], "sky": "sunny"}
    if name == "set_timer":
        return {"status": "started", "minutes": arguments["minutes"]}
    return {"order_id": arguments["order_id"], "status": "shipped"}


def main() -> None:
    for question in (
        "What is the weather in Lisbon in celsius?",
        "Set a timer for 12 minutes please.",
        "Wo ist meine Bestellung R-20417?",
    ):
        print("user:", question)
        messages: list[dict[str, object]] = [{"role": "user", "content": question}]
        reply = client.chat.completions.create(
            model="gpt-4o-mini", messages=messages, tools=TOOLS, tool_choice="required", temperature=0
        )
        message = reply.choices[0].message
        assert message.tool_calls, "tool_choice='required' guarantees a call"
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = run_tool(call.function.name, json.loads(call.function.arguments))
            print(f"  {call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
        final = client.chat.completions.create(
            model="gpt-4o-mini", messages=messages, tools=TOOLS, tool_choice="none", temperature=0
        )
        print("assistant:", final.choices[0].message.content)


if __name__ == "__main__":
    main()
