"""What shells, compilers and linkers print in another language, put back into English. Pure.

Programs that call setlocale() translate: bash, gcc, ld, coreutils, systemctl. Python, CUDA, NCCL, UCX and the
kernel do not. Taken from the message catalogues of glibc 2.36, bash 5.2, binutils 2.40 and gcc 12, 2026-11-22.
"""

from __future__ import annotations

import re

_SAID: dict[str, tuple[str, ...]] = {
    "No such file or directory": (
        "Datei oder Verzeichnis nicht gefunden",
        "Aucun fichier ou dossier de ce type",
        "No existe el fichero o el directorio",
        "No existe el archivo o el directorio",
        "そのようなファイルやディレクトリはありません",
        "没有那个文件或目录",
    ),
    "No such device or address": (
        "Kein passendes Gerät bzw. keine passende Adresse gefunden",
        "Aucun périphérique ou adresse",
        "No existe el dispositivo o la dirección",
        "そのようなデバイスやアドレスはありません",
        "没有那个设备或地址",
    ),
    "No such device": (
        "Kein passendes Gerät gefunden",
        "Aucun périphérique de ce type",
        "No existe el dispositivo",
        "そのようなデバイスはありません",
        "没有那个设备",
    ),
    "Permission denied": (
        "Keine Berechtigung",
        "Permission non accordée",
        "Permiso denegado",
        "許可がありません",
        "权限不够",
    ),
    "Operation not permitted": (
        "Die Operation ist nicht erlaubt",
        "Vorgang nicht zulässig",
        "Opération non permise",
        "Operación no permitida",
        "許可されていない操作です",
        "不允许的操作",
    ),
    "Cannot allocate memory": (
        "Nicht genügend Hauptspeicher verfügbar",
        "Ne peut allouer de la mémoire",
        "Impossible d'allouer de la mémoire",
        "No se pudo asignar memoria",
        "メモリを確保できません",
        "无法分配内存",
    ),
    "Connection refused": (
        "Verbindungsaufbau abgelehnt",
        "Connexion refusée",
        "Conexión rehusada",
        "接続を拒否されました",
        "拒绝连接",
    ),
    "Connection timed out": (
        "Die Wartezeit für die Verbindung ist abgelaufen",
        "Connexion terminée par expiration du délai d'attente",
        "Expiró el tiempo de conexión",
        "接続がタイムアウトしました",
        "连接超时",
    ),
    "No space left on device": (
        "Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
        "Aucun espace disponible sur le périphérique",
        "No queda espacio en el dispositivo",
        "デバイスに空き領域がありません",
        "设备上没有空间",
    ),
    "Too many open files": (
        "Zu viele offene Dateien",
        "Trop de fichiers ouverts",
        "Demasiados ficheros abiertos",
        "ファイルを開きすぎです",
        "打开的文件过多",
    ),
    "Address already in use": (
        "Die Adresse wird bereits verwendet",
        "Adresse déjà utilisée",
        "La dirección ya se está usando",
        "アドレスは既に使用中です",
        "地址已在使用",
    ),
    "No route to host": (
        "Keine Route zum Zielrechner",
        "Aucun chemin d'accès pour atteindre l'hôte cible",
        "No existe ninguna ruta hasta el `host'",
        "ホストへの経路がありません",
        "没有到主机的路由",
    ),
    "Name or service not known": (
        "Der Name oder der Dienst ist nicht bekannt",
        "Nom ou service inconnu",
        "Nombre o servicio desconocido",
        "名前またはサービスが不明です",
        "未知的名称或服务",
    ),
    "cannot open shared object file": (
        "Kann die Shared-Object-Datei nicht öffnen",
        "Ne peut ouvrir le fichier d'objet partagé",
        "no se puede abrir el fichero del objeto compartido",
        "共有オブジェクトファイルを開けません",
        "无法打开共享对象文件",
    ),
    "Bus error": ("Bus-Zugriffsfehler", "Erreur du bus", "Error del bus", "バスエラー", "总线错误"),
    "command not found": (
        "Kommando nicht gefunden",
        "Befehl nicht gefunden",
        "commande introuvable",
        "orden no encontrada",
        "コマンドが見つかりません",
        "未找到命令",
    ),
}
_ENGLISH = {said: english for english, many in _SAID.items() for said in many}
_ANY = re.compile("|".join(re.escape(said) for said in sorted(_ENGLISH, key=len, reverse=True)))
_FATAL = re.compile(
    r"schwerwiegender Fehler ?: |erreur fatale[ \u00a0\u202f]?: |error fatal: |致命的エラー: |致命错误[\uff1a:] ?"
)
_CANNOT_FIND = re.compile(
    r"kann (\S{1,200}) nicht finden|(?:impossible de trouver|ne peut trouver|no se puede encontrar|找不到) (\S{1,200}?)(?=[:\s]|$)"
    r"|(-l\S{1,200}) が見つかりません",
    re.MULTILINE,
)
_UNDEFINED = re.compile(
    r"nicht definierter Verweis auf|référence indéfinie vers|referencia a(?= [`«'‘].{1,300} sin definir)|対する定義されていない参照|未定义的引用"
)
_SPACED_COLON = re.compile(
    r"(?<=[\w\"'/])[ \u00a0\u202f]: (?=No such|Permission denied|Operation not|cannot open|command not)"
)


def in_english(text: str) -> str:
    """The text with such messages in English; the same text where there are none. Lines keep their numbers."""
    plain = _ANY.sub(lambda match: _ENGLISH[match.group()], text)
    plain = _FATAL.sub("fatal error: ", plain)
    plain = _CANNOT_FIND.sub(lambda match: "cannot find " + next(filter(None, match.groups())), plain)
    plain = _UNDEFINED.sub("undefined reference to", plain)
    return plain if plain == text else _SPACED_COLON.sub(": ", plain)
