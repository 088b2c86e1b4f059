# The xfrmnetlink crate over tokio: non-blocking sockets and epoll.
exec "$CLIENTS/xfrmnetlink"
