"""Reads from the source of the package the messages that its users can meet.

A message is a text with `…` for each value in it. Messages are those of `raise`, of
`warnings.warn`, and of `print` to standard error. Names of constants are replaced by their texts,
and functions that make an exception by what they return; both branches of `a if b else c` count.
"""

import ast
import builtins
import collections
import itertools
import pathlib
import re

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "keras_rgemma"
PLACE = "…"
_MOST_FORMS = 16  # of one message with several `a if b else c`

# `where` is "folder/file.py:line". `text` is a str, or None if nothing of it is known.
Message = collections.namedtuple("Message", "where text code")


def module_name(path, package=PACKAGE):
    """The dotted name of a file, with the name of the package in front."""
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Module:
    """The functions, classes, constants and imports of one file."""

    def __init__(self, path, package):
        self.path, self.package, self.name = path, package, module_name(path, package)
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions, self.classes, self.constants, self.imports = {}, {}, {}, {}
        self.parents = {}
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, ast.FunctionDef):
                self.functions.setdefault(node.name, node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module, alias.name)
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                for target, value in zip(
                    node.targets[0].elts, getattr(node.value, "elts", ()), strict=False
                ):
                    self.constants[target.id] = value

    def function_around(self, node):
        """The innermost function that a node stands in, or None."""
        while node is not None and not isinstance(node, ast.FunctionDef):
            node = self.parents.get(node)
        return node

    def class_around(self, node):
        while node is not None and not isinstance(node, ast.ClassDef):
            node = self.parents.get(node)
        return node


class Package:
    """All files of a package, and the messages in them."""

    def __init__(self, package=PACKAGE):
        paths = sorted(package.rglob("*.py"))
        self.root = package
        self.modules = {module_name(path, package): Module(path, package) for path in paths}

    def messages(self):
        """A list of `Message`, in the order of files and lines; a re-raise has none."""
        found = []
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                code = self._code(node)
                if code is None:
                    continue
                scope = _Scope(self, module, module.function_around(node))
                if isinstance(node, ast.Raise):
                    texts = scope.exception(code) if self._is_own(node, module) else []
                else:
                    texts = scope.forms(code)
                where = f"{module.path.relative_to(self.root).as_posix()}:{node.lineno}"
                for text in texts:
                    text = re.sub(f"{PLACE}([/.]?{PLACE})+", PLACE, " ".join(text.split()))
                    # A value alone says nothing to search for.
                    known = text if re.search(r"\w", text) else None
                    found.append(Message(where, known, ast.unparse(code)))
        return found

    def _code(self, node):
        """The expression of a message that a node gives to the user, or None."""
        if isinstance(node, ast.Raise):
            return node.exc
        if not isinstance(node, ast.Call):
            return None
        name = ast.unparse(node.func)
        to_stderr = any(ast.unparse(x) == "file=sys.stderr" for x in node.keywords)
        if name == "warnings.warn" or (name == "print" and to_stderr and node.args):
            return node.args[0]
        return None

    def _is_own(self, node, module):
        """Whether a `raise` is not one of the exception that was caught, handed on."""
        around = node
        while around is not None and not isinstance(around, ast.FunctionDef):
            if isinstance(around, ast.ExceptHandler) and around.name == ast.unparse(node.exc):
                return False
            around = module.parents.get(around)
        return True

    def find(self, kind, module, name, seen=()):
        """The module and the node with a name in "functions", "classes" or "constants"."""
        if name in getattr(module, kind):
            return module, getattr(module, kind)[name]
        if name in module.imports and (module.name, name) not in seen:
            source, original = module.imports[name]
            if source in self.modules:
                return self.find(kind, self.modules[source], original, (*seen, (module.name, name)))
        return None, None


class _Scope:
    """Where names are looked up: a function of a module, and the texts of its arguments."""

    def __init__(self, package, module, function, arguments=None, depth=0):
        self.package, self.module, self.function = package, module, function
        self.arguments, self.depth = arguments or {}, depth

    def exception(self, node):
        """The texts of an exception, a list of str."""
        if isinstance(node, ast.Name) and self._is_exception(node.id):
            return [""]
        if not isinstance(node, ast.Call):
            return [PLACE]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        where = self.module
        if isinstance(node.func, ast.Attribute):  # `self.broken(x)`, or `module.broken(x)`
            where = self._imported(ast.unparse(node.func.value)) or where
        module, function = self.package.find("functions", where, name)
        if function is not None and self.depth < 4:
            inner = _Scope(
                self.package, module, function, self._bound(node, function), self.depth + 1
            )
            returned = [x.value for x in ast.walk(function) if isinstance(x, ast.Return)]
            return [text for value in returned if value for text in inner.exception(value)]
        module, own = self.package.find("classes", where, name)
        if own is not None:
            for call in ast.walk(own):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    return _Scope(self.package, module, None).forms(call.args[0])
        return self.forms(node.args[0]) if node.args else [""]

    def _is_exception(self, name):
        kind = getattr(builtins, name, None)
        return isinstance(kind, type) and issubclass(kind, BaseException)

    def _bound(self, call, function):
        """A dict of a function's parameters to their texts in a call."""
        names = [x.arg for x in (*function.args.posonlyargs, *function.args.args)]
        if names and names[0] == "self":
            names = names[1:]
        defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
        bound = {name: self.forms(value) for name, value in defaults.items()}
        bound |= {name: self.forms(value) for name, value in zip(names, call.args, strict=False)}
        bound |= {x.arg: self.forms(x.value) for x in call.keywords if x.arg}
        return bound

    def forms(self, node):
        """The texts that an expression may have, a list of str."""
        if isinstance(node, ast.Constant):
            return [node.value if isinstance(node.value, str) else PLACE]
        if isinstance(node, ast.JoinedStr):
            parts = [self.forms(part) for part in node.values]
            return ["".join(x) for x in itertools.islice(itertools.product(*parts), _MOST_FORMS)]
        if isinstance(node, ast.FormattedValue):
            texts = self.forms(node.value)
            texts = [
                repr(x) if node.conversion == ord("r") and PLACE not in x else x for x in texts
            ]
            return [PLACE] if node.format_spec else texts
        if isinstance(node, ast.IfExp):
            return [*self.forms(node.body), *self.forms(node.orelse)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = itertools.product(self.forms(node.left), self.forms(node.right))
            return ["".join(pair) for pair in pairs]
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "strip":
            return self.forms(node.func.value)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self._of_module(node.value.id, node.attr)
        return [PLACE]

    def _named(self, name):
        if name in self.arguments:
            return self.arguments[name]
        if self.function is not None:
            if name in {x.arg for x in ast.walk(self.function) if isinstance(x, ast.arg)}:
                return [PLACE]
            values = [
                x.value
                for x in ast.walk(self.function)
                if isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == name
            ]
            if len(values) == 1 and _is_text(values[0]):
                return self.forms(values[0])
            if values:
                return [PLACE]
        module, value = self.package.find("constants", self.module, name)
        if value is not None and _is_text(value):
            return _Scope(self.package, module, None).forms(value)
        return [PLACE]

    def _imported(self, name):
        """The module of the package that a name stands for, or None."""
        source = self.module.imports.get(name)
        return self.package.modules.get(".".join(source)) if source and source[0] else None

    def _of_module(self, name, attribute):
        other = self._imported(name)
        value = other.constants.get(attribute) if other else None
        is_known = value is not None and _is_text(value)
        return _Scope(self.package, other, None).forms(value) if is_known else [PLACE]


def _is_text(node):
    """Whether an expression is made of constants that are texts."""
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)
