"""Tasks by name: one file a task, one row a task."""

# name -> module and factory; the factory takes (cache folder, progress, and its options as keyword arguments, strings) and returns a Task
TASKS = {
    "digits": "autocompress.tasks.digits:digits",
    "fashion-mnist": "autocompress.tasks.fashion_mnist:fashion_mnist",
    "cifar10": "autocompress.tasks.cifar10:cifar10",
    "image-folder": "autocompress.tasks.image_folder:image_folder",
    "text-classification": "autocompress.tasks.text_classification:text_classification",
    "char-lm": "autocompress.tasks.char_lm:char_lm",
    "tabular": "autocompress.tasks.tabular:tabular",
}
FILES = ("data", "weights")  # options that are paths
