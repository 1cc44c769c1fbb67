"""Does what a client asks of files and folders, with the rights that any program of the sandbox has.

`request`: do (list, stat, make, move, remove, read, write, look), path, and what each needs. A path below /home/user is one below the
home folder, which in a branch lies elsewhere; a relative one begins there.
"""

from typing import Any


def main(request: dict[str, Any]) -> Any:
    import base64
    import errno
    import grp
    import os
    import pwd
    import shutil
    import stat

    shown_home, home = "/home/user", os.environ["HOME"]
    most = 10_000  # entries of one answer

    def real(path: str) -> str:
        path = os.path.normpath(os.path.join(shown_home, path))
        return home + path[len(shown_home) :] if path == shown_home or path.startswith(shown_home + "/") else path

    def shown(path: str) -> str:
        path = os.path.normpath(os.path.join(shown_home, path))
        return path[1:] if path.startswith("//") else path

    def name_of(find: Any, number: int) -> str:
        try:
            return find(number)[0]
        except KeyError:
            return str(number)

    def entry(path: str, at: str) -> dict[str, Any]:
        status = os.lstat(at)
        target = None
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(at)
            try:
                kind = os.stat(at).st_mode
            except OSError:
                kind = status.st_mode
        else:
            kind = status.st_mode
        return {
            "name": os.path.basename(path) or "/",
            "path": path,
            "folder": stat.S_ISDIR(kind),
            "size": status.st_size,
            "mode": stat.S_IMODE(status.st_mode) & 0o777,
            "owner": name_of(pwd.getpwuid, status.st_uid),
            "group": name_of(grp.getgrgid, status.st_gid),
            "modified_ns": status.st_mtime_ns,
            "target": target,
            "inode": status.st_ino,
        }

    def below(path: str, depth: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        folders = [(path, real(path), depth)]
        while folders:
            at_shown, at, left = folders.pop(0)
            try:
                names = sorted(os.listdir(at))
            except OSError:
                if at_shown == path:
                    raise
                continue
            for name in names:
                if len(found) >= most:
                    return found
                child = os.path.join(at_shown, name)
                try:
                    one = entry(child, os.path.join(at, name))
                except OSError:
                    continue  # gone meanwhile
                found.append(one)
                if left > 1 and one["folder"] and one["target"] is None:
                    folders.append((child, os.path.join(at, name), left - 1))
        return found

    def refusal(code: str, message: str) -> dict[str, Any]:
        return {"error": code, "message": message}

    def do() -> Any:
        match request["do"]:
            case "list":
                if not os.path.isdir(at):
                    os.stat(at)
                    return refusal("invalid_argument", f"path is not a directory: {path}")
                return {"entries": below(path, request["depth"])}
            case "look":
                if not os.path.isdir(at):
                    os.stat(at)
                    return refusal("invalid_argument", f"path is not a directory: {path}")
                return {"entries": below(path, 64 if request["deep"] else 1)}
            case "stat":
                return {"entries": [entry(path, at)]}
            case "make":
                if os.path.isdir(at):
                    return refusal("already_exists", f"directory already exists: {path}")
                if os.path.lexists(at):
                    return refusal("invalid_argument", f"path already exists but it is not a directory: {path}")
                os.makedirs(at)
                return {"entries": [entry(path, at)]}
            case "move":
                to = real(request["to"])
                os.makedirs(os.path.dirname(to), exist_ok=True)
                os.rename(at, to) if os.stat(os.path.dirname(to)).st_dev == os.lstat(at).st_dev else shutil.move(at, to)
                return {"entries": [entry(shown(request["to"]), to)]}
            case "remove":
                if os.path.isdir(at) and not os.path.islink(at):
                    shutil.rmtree(at)
                elif os.path.lexists(at):
                    os.unlink(at)
                return {}
            case "read":
                if os.path.isdir(at):
                    return refusal("invalid_argument", f"path '{path}' is a directory")
                status = os.stat(at)
                if not stat.S_ISREG(status.st_mode):
                    return refusal("invalid_argument", f"path '{path}' is not a regular file")
                with open(at, "rb") as file:
                    file.seek(request["offset"])
                    data = file.read(request["size"])
                if data:
                    display({"application/octet-stream": data}, raw=True)  # type: ignore[name-defined]  # noqa: F821
                return {"size": status.st_size}
            case "write":
                if os.path.isdir(at):
                    return refusal("invalid_argument", f"path is a directory: {path}")
                os.makedirs(os.path.dirname(at), exist_ok=True)
                part = os.path.join(os.path.dirname(at), request["part"])
                try:
                    with open(part, "ab" if request["more"] else "xb") as file:
                        file.write(base64.b64decode(request["data"]))
                    if request["last"]:
                        os.rename(part, at)
                except BaseException:
                    if os.path.lexists(part):
                        os.unlink(part)
                    raise
                return {}
            case "discard":
                part = os.path.join(os.path.dirname(at), request["part"])
                if os.path.lexists(part):
                    os.unlink(part)
                return {}
            case other:
                return refusal("unimplemented", f"there is no {other!r}")

    path, at = shown(request["path"]), real(request["path"])
    codes = {
        errno.ENOENT: "not_found", errno.EACCES: "permission_denied", errno.EPERM: "permission_denied", errno.EROFS: "permission_denied",
        errno.ENOSPC: "resource_exhausted", errno.EDQUOT: "resource_exhausted", errno.EFBIG: "resource_exhausted",
    }  # fmt: skip
    try:
        return do()
    except (OSError, ValueError, shutil.Error) as err:
        code = codes.get(getattr(err, "errno", None) or 0, "invalid_argument")
        return refusal(code, f"{path}: {getattr(err, 'strerror', None) or err}")


main(globals().pop("request"))
