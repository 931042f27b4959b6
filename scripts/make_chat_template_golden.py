#!/usr/bin/env python3
"""Makes tests/golden/chat_template.json: templates in the manner of published models, conversations, and the text that
Jinja2 gives with the settings of transformers.

usage: make_chat_template_golden.py [OUTPUT_FILE]      needs the Python package jinja2
"""
import json
import sys
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES = {
    "chatml": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "deepseek_v2": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "deepseek_v3": """{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- if ns.is_first_sp %}
            {%- set ns.system_prompt = ns.system_prompt + message['content'] %}
            {%- set ns.is_first_sp = false %}
        {%- else %}
            {%- set ns.system_prompt = ns.system_prompt ~ '\\n\\n' ~ message['content'] %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.is_tool = false -%}
        {{- '<|User|>' + message['content'] }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.is_tool %}{{ '<|Assistant|>' }}{% endif %}""",
    "header_ids": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start|>' + message['role'] + '<|stop|>\\n\\n' + message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{{ '<|start|>assistant<|stop|>\\n\\n' }}""",
    "alternating": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{#- the system message goes into the last turn of the user #}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message.content.strip() + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "odds_and_ends": """
{% for m in messages if m.role != 'system' %}
  {{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m.content | length }} {{ m['content'][:3] }}|{{ m.content[-2:] }}
  {% if loop.first and not loop.last %}
first{{ loop.revindex }}
  {% elif loop.last %}
last {{ (loop.index * 7 + 3) // 2 % 5 }} {{ 7 / 2 }} {{ -3 + 1 }}
  {% endif %}
{% else %}
none
{% endfor %}
{{ {'a': [1, 2.5, none, true], "b": 'q"é'} | tojson }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ 'yes' if messages else 'no' }} {{ missing | default('fallback') }} {{ [1, 2, 3][::-1] | join(', ') }} {{ 'a-b'.replace('-', '+').upper() }}
{%- for i in range(2, 8, 3) %} {{ i }}{% endfor %} {{ 'x' in 'xyz' and 3 not in [1, 2] }} {{ messages[-1]['role'] }} {{ true }} {{ none }}
""",
    "scopes": """{% set x = 0 %}{% for i in [1, 2, 3] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% for m in messages %}{% if m.role == 'user' %}{% set c = m.content %}{% endif %}<{{ c }}>{% endfor %}[{{ c }}{{ m }}]
{% for i in [1, 2, 3] if i > x %}{% set x = 7 %}{{ i }}{{ x }}{{ loop.index }}{% endfor %}{{ x }}
{% for i in [] %}{% else %}{% set x = 9 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 8 %}{% endif %}{{ x }}
{% for i in [1, 2] %}{% for i in ['a', 'b'] %}{{ i }}{{ loop.index }}{% set y = i %}{% endfor %}{{ i }}{{ loop.index }}{{ y }}{% endfor %}
{% set ns = namespace(a=[0]) %}{% set before = ns.a %}{% for i in [1, 2] %}{% set ns.a = ns.a + [i] %}{% set ns.b = i %}{% endfor %}{{ ns.a | tojson }}{{ before | tojson }}{{ ns['b'] }}{{ ns.c }}""",
    "operators": """{{ 1 == 1 == 1 }} {{ 3 > 2 > 2 }} {{ 1 < 2 in [2] }} {{ 1 == true }} {{ [1] == [true] }} {{ 'a' < 'b' != 'c' }}
{{ 1 ~ 2 * 3 }} {{ 'a' ~ 'b' + 'c' ~ 1 - 1 if false else 'x' + 1 ~ 2 }} {{ -7 // 2 }} {{ 10 - 2 - 3 }} {{ 0 or '' or 3 }} {{ 1 and 2 }}
{{ {'a': 1, 'b': [2]} == {'b': [2.0], 'a': 1} }} {{ none == missing }} {{ -3 | string | length }} {{ not 1 == 2 }}""",
    "strings_and_brackets": """{{ {'a': {'b': 1}}.a.b }}{{ {'a': {'b': {}}} | tojson }}{% if {'}}': {'%}': 1}}['}}']['%}'] == 1 %}yes{% endif %}
{{ ' a b  c '.split() | tojson }} {{ ' a b  c '.split(none, 1) | tojson }} {{ ''.split() | tojson }} {{ 'a,b,c'.split(',', 1) | tojson }}
{{ 'äbc'[0] }}{{ 'abö'[-1] }}{{ 'abc'[7] }} {{ 'äbc' | first }}{{ 'abö' | last }}{{ '' | first }} {{ 'äöü'[::-1] }} {{ 'äöü'[1:] }} {{ 'äöü' | list | tojson }} {{ 'aaa'.replace('a', 'b', 2) }}""",
    "arguments": """{{ {'a': [1, {'b': 'ü', 'c': []}], 'd': {}} | tojson(indent=4) }} {{ [[], 1] | tojson(ensure_ascii=false, indent=1) }}
{{ '' | default(boolean=true, default_value='x') }}{{ missing | default(none) }}{{ 'a,b,c'.split(sep=',', maxsplit=1) | tojson }} {{ [1, 2] | join(d='-') }}
{{ 'あいあ'.strip('あ') }}{{ 'あい'.strip('、') }}<{{ '\u3000\u00a0x\u2003' | trim }}> {{ 'a\u3000b c'.split() | tojson }} {{ 'é'.lstrip('è') }}""",
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2+2? "}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>hm</think> Hello, émile 😀 "},
     {"role": "user", "content": "line one\nline two {{ x }}"}],
    [{"role": "assistant", "content": "I begin."}, {"role": "system", "content": "late"}],
]


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda x, ensure_ascii=False, indent=None: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent)

    def refuse(message):
        raise ValueError(message)

    environment.globals["raise_exception"] = refuse
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                try:
                    text = environment.from_string(template).render(
                        messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")
                except ValueError:
                    text = None
                cases.append({"template": name, "messages": messages, "add_generation_prompt": prompt, "text": text})
    output = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "tests/golden/chat_template.json"
    Path(output).write_text(json.dumps({"templates": TEMPLATES, "cases": cases}, indent=1))


main()
