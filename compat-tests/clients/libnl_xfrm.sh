# libnl-xfrm: SAs and policies through a library of its own.
exec "$CLIENTS/libnl_xfrm"
