"""Which objective wins where: students of one teacher, the same rows, as many steps, three seeds (`make results`)."""
