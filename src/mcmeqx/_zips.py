"""What reading a zip raises that is damaged, or that no reader here can open."""

import lzma
import zipfile
import zlib

ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    # Encrypted, or packed in a way that this Python lacks.
    RuntimeError,
)
