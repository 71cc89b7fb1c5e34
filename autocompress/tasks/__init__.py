"""Tasks by name: one file a task, one row a task."""

# name -> module and factory; the factory takes (cache folder, progress) and returns a Task
TASKS = {"digits": "autocompress.tasks.digits:digits"}
