vcl 4.1;
# Varnish in front of Verbatim.
#   varnishd -F -f "$PWD/deploy/proxies/varnish.vcl" -a :8080 -n /tmp/verbatim-varnish
# Tried with 7.1.1 (make proxies).

backend verbatim {
    .host = "127.0.0.1";
    .port = "8000";
    # Silence; keep-alives come every 15 s.
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 60s;
}

sub vcl_recv {
    # A client that leaves a silent stream is noticed some keep-alives later: have them oftener.
    set req.http.X-Keep-Alive-Interval = "5";
    return (pass);
}
