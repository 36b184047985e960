"""Holds the chat template of Gemma's format, which transformers renders with Jinja.

It gives the text whose ids are those of `lm.chat` for the same messages. Unlike Google's it ends
with `<end_of_turn>` after an answer, without a line break, as a text that the model has written.
"""

TEMPLATE = """\
{{- bos_token -}}
{%- set seen = namespace(turns=0, system='') -%}
{%- for message in messages -%}
    {%- if message['content'] is string -%}
        {%- set text = message['content'] -%}
    {%- elif message['content'] is sequence -%}
        {%- for part in message['content'] if part.get('type', 'text') != 'text' -%}
            {{- raise_exception('The model reads text alone. Received: ' ~ part['type']) -}}
        {%- endfor -%}
        {%- set text = message['content'] | map(attribute='text') | join -%}
    {%- else -%}
        {{- raise_exception('A content is a string or a list of parts of type text.') -}}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if role == 'system' and loop.first -%}
        {%- set seen.system = text | trim -%}
    {%- elif role != ['user', 'model'][seen.turns % 2] -%}
        {{- raise_exception('Roles must be user and assistant in turn, after a first system.') -}}
    {%- else -%}
        {%- if seen.turns == 0 and seen.system -%}
            {%- set text = seen.system ~ '\\n\\n' ~ (text | trim) -%}
        {%- endif -%}
        {{- '\\n' if seen.turns else '' -}}
        {{- '<start_of_turn>' ~ role ~ '\\n' ~ (text | trim) ~ '<end_of_turn>' -}}
        {%- set seen.turns = seen.turns + 1 -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\\n<start_of_turn>model\\n' -}}
{%- endif -%}
"""
