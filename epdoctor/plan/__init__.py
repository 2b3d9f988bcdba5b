"""From a model and nodes to a layout, its memory and every node's command. Pure."""
