"""Preparing nodes: Ansible playbooks driven through ansible-runner, shown as component x node, and undone."""
