"""The Model Context Protocol: Onetrip's sessions and files as tools and resources, over HTTP beside the native interface and on stdio.

The protocol itself is the SDK's. Ours are the tools (`tools`), what they take and give (`schema`), how results look to a model
(`content`), and the two things that can carry them: the server's application core (`served`) and an engine in this process (`local`).
"""
