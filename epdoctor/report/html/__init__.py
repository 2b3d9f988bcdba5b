"""What the HTML report is made of: its data, the pictures of nodes, one style sheet and three scripts."""
