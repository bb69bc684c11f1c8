#!/usr/bin/env python3
"""SMTP relay peers: install into prefixes, run, and measure side by side.

  peers.py install [postfix]                fetch + unpack all peers (or that one) under --root
  peers.py disk                             4 KiB append+fdatasync latency, bytes/s
  peers.py run PEER [--size --sessions --rcpts --count --single]   one table row
  peers.py matrix --peers a,b --cells key|full --reps 3 --out F    many rows (JSON lines)
  peers.py idle PEER --conns 1000           memory held per idle session
  peers.py alone PEER --load smtpload       one connection: from the final dot to the 250, beside one fdatasync
  peers.py report F [F..]                   median tables (markdown) from JSON lines
  peers.py ratio F [F..]                    Postfix beside Causeway, one line per row (markdown)
  peers.py sweep [--peers a,b] --out F      1 to 200 connections, 1 and 10 KiB, plain and TLS, peers in turn
  peers.py curves F                         what sweep measured, as markdown, and as a picture in F's .svg
  peers.py hops [postfix|causeway]          a healthy hop alone and beside bad ones: what is left of its throughput
  peers.py pivot F [F..]                    one line per cell, one column per peer
  peers.py clean                            remove users/mount points/prefixes we made

PEER: direct postfix causeway causeway-early exim eximq opensmtpd haraka custom
causeway-early = acknowledge = "delivered-or-durable": the 250 follows the next hop's, or the sync.
causeway = target/release/causeway of this checkout (--cmd names another binary).
--two: two recipients per message, one for a plain sink and one for a sink behind TLS with
  a demanded certificate name, bifurcated by the peer (postfix: a transport map); needs --load smtpload.
custom = any other daemon (ours): --cmd 'prog -c {work}/c.toml' --setup 'shell to write config'
  [--name N] [--user U] ; placeholders {listen} {nexthop} {spool} {work} {ca} {cert} {key}
  --cmd must stay in the foreground, listen on 127.0.0.1:{listen}, relay everything
  to 127.0.0.1:{nexthop}, and delete a message's file(s) from {spool} when done, or give
  --queue-count 'shell printing the number of queued messages'.

All traffic stays on 127.0.0.1. Every wait is bounded.
"""
import argparse, json, platform, os, re, shlex, shutil, signal, socket, statistics, subprocess, sys, time, threading

A = None                                   # parsed args
HERE = os.path.dirname(os.path.abspath(__file__))
HZ = os.sysconf('SC_CLK_TCK'); PAGE = os.sysconf('SC_PAGE_SIZE')
DEBS = ['postfix', 'exim4-daemon-light', 'exim4-base', 'opensmtpd', 'libidn12']
USERS = ['postfix', 'Debian-exim', 'opensmtpd', 'opensmtpq']
MOUNTPTS = ['/var/spool/smtpd', '/var/lib/opensmtpd/empty', '/etc/exim4']

def sh(cmd, **kw):
    return subprocess.run(cmd, shell=isinstance(cmd, str), text=True, capture_output=True,
                          timeout=kw.pop('timeout', 180), **kw)

def P(*a):
    if a[0] == 'work': return os.path.join(A.spoolroot or A.root, *a)
    return os.path.join(A.root, *a)
def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f: f.write(text)
    os.chmod(path, mode)

# ----------------------------------------------------------------- install
def install():
    os.makedirs(P('debs'), exist_ok=True)
    for d in A.rest or DEBS:
        if not any(x.startswith(d + '_') for x in os.listdir(P('debs'))):
            r = sh(['apt-get', 'download', d], cwd=P('debs')); print(d, r.returncode)
    dest = {'postfix': 'postfix', 'exim4-daemon-light': 'exim', 'exim4-base': 'exim',
            'opensmtpd': 'opensmtpd', 'libidn12': 'exim'}
    for f in sorted(os.listdir(P('debs'))):
        n = f.split('_')[0]
        if n in dest and f.endswith('.deb'):
            os.makedirs(P(dest[n]), exist_ok=True)
            subprocess.run(['dpkg', '-x', P('debs', f), P(dest[n])], check=True)
    if sh('getent group postdrop').returncode: sh('groupadd -r postdrop')
    for u in USERS:
        if sh(['getent', 'passwd', u]).returncode:
            sh(['useradd', '-r', '-U', '-M', '-d', '/nonexistent', '-s', '/usr/sbin/nologin', u])
    for m in MOUNTPTS: os.makedirs(m, exist_ok=True)
    if not A.rest and not os.path.isdir(P('haraka/node_modules/Haraka')):
        write(P('haraka/package.json'), json.dumps({"name": "haraka-bench", "version": "1.0.0",
              "private": True, "dependencies": {"Haraka": A.haraka}}))
        c = ['npm', 'install', '--no-audit', '--no-fund', '--omit=dev', '--omit=optional']
        r = sh(c, cwd=P('haraka'))
        if not os.path.isdir(P('haraka/node_modules/Haraka')):   # newest may not resolve yet: resolve as of a date
            r = sh(c + ['--before=' + A.haraka_before], cwd=P('haraka'))
        print('haraka', r.returncode)
    if not os.path.exists(P('tls/ca.pem')): mktls()
    r = sh(['cargo', 'build', '--release', '--manifest-path', os.path.join(HERE, 'smtpload/Cargo.toml'), '--target-dir', P('target')], timeout=400)
    print('smtpload', r.returncode, r.stderr[-300:] if r.returncode else '')
    print(sh(f"ls {P('debs')}").stdout)

def mktls():
    d = P('tls'); os.makedirs(d, exist_ok=True); os.chmod(A.root, 0o755)
    sh(f"""cd {d} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=perf-ca \
 -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key.pem -out c.csr
printf 'subjectAltName=DNS:localhost,DNS:relay.test,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' > e
openssl x509 -req -in c.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile e -out cert1.pem
cat cert1.pem ca.pem > cert.pem; chmod 644 *.pem; chmod 600 key.pem""")

# ----------------------------------------------------------------- cgroup / proc accounting
class CG:
    """One cgroup-v2 directory (cpu.stat needs no controller) holding every process of one peer."""
    def __init__(self, name):
        base = '/sys/fs/cgroup/unified' if os.path.isdir('/sys/fs/cgroup/unified') else '/sys/fs/cgroup'
        self.d = f'{base}/smtpperf-{os.getpid()}-{name}'
        os.makedirs(self.d, exist_ok=True)
    def enter(self):
        with open(self.d + '/cgroup.procs', 'w') as f: f.write('0')
    def pids(self):
        try: return [int(x) for x in open(self.d + '/cgroup.procs').read().split()]
        except OSError: return []
    def cpu(self):
        s = dict(l.split() for l in open(self.d + '/cpu.stat'))
        return int(s['usage_usec']), int(s['user_usec']), int(s['system_usec'])
    def rss(self):
        """(procs, sum RSS KiB, sum of non-file RSS KiB)"""
        n = t = a = 0
        for p in self.pids():
            try: f = open(f'/proc/{p}/statm').read().split()
            except OSError: continue
            n += 1; t += int(f[1]); a += int(f[1]) - int(f[2])
        return n, t * PAGE // 1024, a * PAGE // 1024
    def pss(self):
        t = 0
        for p in self.pids():
            try:
                for l in open(f'/proc/{p}/smaps_rollup'):
                    if l.startswith('Pss:'): t += int(l.split()[1])
            except OSError: pass
        return t
    def kill(self):
        for _ in range(50):
            ps = self.pids()
            if not ps: break
            for p in ps:
                try: os.kill(p, signal.SIGKILL)
                except OSError: pass
            time.sleep(0.05)
        for _ in range(20):                       # zombies may hold it for a moment
            try: os.rmdir(self.d); break
            except OSError: time.sleep(0.1)

def pcpu(pid):
    f = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()
    return (int(f[11]) + int(f[12])) / HZ

def disk_dev(path):
    st = os.stat(path).st_dev; mm = f'{os.major(st)}:{os.minor(st)}'
    return mm
def diskstats(mm):
    for l in open('/proc/diskstats'):
        f = l.split()
        if f'{f[0]}:{f[1]}' == mm:      # writes, sectors written, flushes
            return int(f[7]), int(f[9]), int(f[18]) if len(f) > 18 else 0
    return 0, 0, 0

class Sampler(threading.Thread):
    def __init__(self, cg, every=0.25):
        super().__init__(daemon=True); self.cg = cg; self.every = every
        self.peak = (0, 0, 0); self.halt = threading.Event()
    def run(self):
        while not self.halt.wait(self.every):
            r = self.cg.rss(); self.peak = tuple(max(a, b) for a, b in zip(self.peak, r))
    def done(self):
        self.halt.set(); self.join(5)
        r = self.cg.rss(); return tuple(max(a, b) for a, b in zip(self.peak, r))

# ----------------------------------------------------------------- load generator / sink
def pfx_env():
    e = dict(os.environ); e['LD_LIBRARY_PATH'] = P('postfix/usr/lib/postfix'); return e

class Sink:
    """smtp-sink -c on a pipe; counters parsed here."""
    def __init__(self, port, tls=None, *manner):
        # a 1 MiB pipe and 5 ms polls: the sink never blocks on its counter line
        if A.load == 'smtpload':
            cmd = [P('target/release/smtpload'), 'sink', '--addr', f'127.0.0.1:{port}', *manner]
            if A.tls if tls is None else tls: cmd += ['--starttls', '--cert', P('tls/cert.pem'), '--key', P('tls/key.pem')]
        else: cmd = [P('postfix/usr/sbin/smtp-sink'), '-u', 'nobody', '-c', '-m', '2000', f'127.0.0.1:{port}', '1024']
        self.p = subprocess.Popen(cmd,
                                  env=pfx_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        import fcntl
        try: fcntl.fcntl(self.p.stdout, 1031, 1 << 20)
        except OSError: pass
        os.set_blocking(self.p.stdout.fileno(), False)
        self.buf = b''; self.mesg = 0; self.sess = 0; self.base = 0; self.sbase = 0; self.tlast = 0.0
        if '--hang' not in manner: wait_port(port)
        # Somebody else's sink may answer there: then ours could not listen, and would count nothing.
        if self.p.poll() is not None: raise SystemExit(f'port {port} is taken')
    def poll(self):
        got = b''
        while True:
            try: b = os.read(self.p.stdout.fileno(), 1 << 20)
            except BlockingIOError: break
            if not b: break
            got += b
        if got:
            self.buf = (self.buf + got)[-400:]
            m = re.findall(rb'sess=(\d+) quit=\d+ mesg=(\d+)', self.buf)
            if m:
                s, n = int(m[-1][0]), int(m[-1][1])
                if n != self.mesg: self.tlast = time.monotonic()
                self.sess, self.mesg = s, n
        return self.mesg - self.base
    def zero(self): self.poll(); self.base = self.mesg; self.sbase = self.sess
    def cpu(self): return pcpu(self.p.pid)
    def stop(self): self.p.terminate(); self.p.wait(5)

class Two:
    """The two sinks of --two, counted as one: a message has arrived once both have their copy."""
    def __init__(self, port): self.a, self.b = Sink(port, False), Sink(port + 1, True)
    def poll(self): return min(self.a.poll(), self.b.poll())
    def zero(self): self.a.zero(); self.b.zero()
    def cpu(self): return self.a.cpu() + self.b.cpu()
    def stop(self): self.a.stop(); self.b.stop()
    mesg = property(lambda s: min(s.a.mesg - s.a.base, s.b.mesg - s.b.base)); base = 0
    sess = property(lambda s: s.a.sess + s.b.sess - s.a.sbase - s.b.sbase); sbase = 0
    tlast = property(lambda s: max(s.a.tlast, s.b.tlast))
def sinks(port): return Two(port) if A.two else Sink(port)

def wait_port(port, limit=25, banner=True):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            s = socket.create_connection(('127.0.0.1', port), 1); s.settimeout(8)
            if banner and not s.recv(4).startswith(b'220'): raise OSError
            s.sendall(b'QUIT\r\n'); s.recv(100); s.close(); return
        except OSError: time.sleep(0.1)
    raise SystemExit(f'port {port}: nothing answers')

def source_cmd(port, size, sessions, rcpts, count, nodisc):
    # smtp-source numbers recipients itself when -r > 1
    if A.load == 'smtpload':
        c = [P('target/release/smtpload'), 'source', '--addr', f'127.0.0.1:{port}', '--sessions', str(sessions),
             '--count', str(count), '--size', str(size), '--rcpts', str(rcpts)]
        if not nodisc: c.append('--single')
        if A.tls: c += ['--starttls', '--ca', P('tls/ca.pem'), '--name', 'relay.test']
        return c
    c = [P('postfix/usr/sbin/smtp-source'), '-M', 'client.test', '-f', 'from@client.test', '-t', 'rcpt@dest.test',
         '-l', str(size), '-m', str(count), '-s', str(sessions), '-r', str(rcpts)]
    if nodisc: c.append('-d')
    return c + [f'127.0.0.1:{port}']

# ----------------------------------------------------------------- peers
class Peer:
    ns = False
    def __init__(self, name): self.name = name; self.work = P('work', name); self.spool = os.path.join(self.work, 'spool')
    def env(self): return dict(os.environ)
    def queued(self):
        n = 0
        for _, _, f in os.walk(self.qdir()): n += len(f)
        return n
    def qdir(self): return self.spool
    def start(self, listen, nexthop):
        self.listen, self.nexthop = listen, nexthop
        shutil.rmtree(self.work, ignore_errors=True); os.makedirs(self.spool)
        os.chmod(A.root, 0o755)
        for d in (P('work'), self.work): os.chmod(d, 0o755)
        cmd = self.prepare()
        self.cg = CG(self.name)
        self.log = open(os.path.join(self.work, 'stdio.log'), 'wb')
        self.p = subprocess.Popen(cmd, env=self.env(), cwd=self.work, preexec_fn=self.cg.enter,
                                  stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        try: wait_port(listen)
        except SystemExit:
            self.stop(); print(open(self.log.name).read()[-3000:], file=sys.stderr); raise
    def stop(self):
        try: self.p.terminate(); self.p.wait(3)
        except Exception: pass
        self.cg.kill()
        try: self.p.wait(3)
        except Exception: pass

class Postfix(Peer):
    def env(self): return dict(pfx_env(), MAIL_CONFIG=self.work + '/conf')
    def qdir(self): return self.spool
    def queued(self):
        n = 0
        for d in ('incoming', 'active', 'deferred', 'maildrop', 'hold'):
            for _, _, f in os.walk(os.path.join(self.spool, d)): n += len(f)
        return n
    def prepare(self):
        pre = P('postfix'); s = self.spool; conf = self.work + '/conf'
        import pwd, grp
        pu = pwd.getpwnam('postfix'); pd = grp.getgrnam('postdrop').gr_gid
        for d in 'active bounce corrupt defer deferred flush hold incoming private saved trace'.split():
            os.mkdir(f'{s}/{d}', 0o700); os.chown(f'{s}/{d}', pu.pw_uid, 0)
        os.mkdir(f'{s}/pid', 0o755); os.chmod(s, 0o755)
        os.mkdir(f'{s}/maildrop'); os.chown(f'{s}/maildrop', pu.pw_uid, pd); os.chmod(f'{s}/maildrop', 0o1730)
        os.mkdir(f'{s}/public'); os.chown(f'{s}/public', pu.pw_uid, pd); os.chmod(f'{s}/public', 0o2710)
        data = self.work + '/data'; os.makedirs(data); os.chown(data, pu.pw_uid, pu.pw_gid)
        tls = P('tls')
        main = f"""compatibility_level = 3.6
queue_directory = {s}
data_directory = {data}
daemon_directory = {pre}/usr/lib/postfix/sbin
command_directory = {pre}/usr/sbin
shlib_directory = {pre}/usr/lib/postfix
meta_directory = {pre}/etc/postfix
import_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ LANG=C
export_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ LANG=C
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.test
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:{self.nexthop}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
# --- throughput settings
default_process_limit = 250
in_flow_delay = 0
default_destination_concurrency_limit = 10
initial_destination_concurrency = 10
default_destination_recipient_limit = 100
qmgr_message_active_limit = 40000
qmgr_message_recipient_limit = 40000
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = [127.0.0.1]:{self.nexthop}
smtp_connection_reuse_count_limit = 0
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
max_use = 10000
message_size_limit = 60000000
smtp_tls_security_level = none
smtpd_tls_security_level = none
"""
        if A.tls: main += f"""
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {tls}/cert.pem
smtpd_tls_key_file = {tls}/key.pem
smtpd_tls_loglevel = 0
smtpd_tls_session_cache_database = btree:{data}/smtpd_scache
smtp_tls_security_level = verify
smtp_tls_verify_cert_match = hostname
smtp_tls_CAfile = {tls}/ca.pem
smtp_tls_connection_reuse = yes
smtp_tls_session_cache_database = btree:{data}/smtp_scache
relayhost = [localhost]:{self.nexthop}
smtp_connection_cache_destinations = [localhost]:{self.nexthop}
"""
            # a later setting of the same name wins in main.cf
        if A.two:
            main += f"""
transport_maps = inline:{{ {{0rcpt@dest.test=relay:[127.0.0.1]:{self.nexthop}}}, {{1rcpt@dest.test=smtp:[localhost]:{self.nexthop + 1}}} }}
smtp_tls_policy_maps = inline:{{ {{[localhost]:{self.nexthop + 1}=secure match=localhost}} }}
smtp_tls_CAfile = {tls}/ca.pem
smtp_tls_connection_reuse = yes
smtp_tls_session_cache_database = btree:{data}/smtp_scache
smtp_connection_cache_destinations = [127.0.0.1]:{self.nexthop} [localhost]:{self.nexthop + 1}
"""
        if A.what == 'hops':
            main += 'transport_maps = inline:{ ' + ', '.join(f'{{{name}.test=relay:[127.0.0.1]:{self.nexthop + at}}}' for name, at in BESIDE) + ' }\n'
        if A.extra: main += A.extra.replace('\\n', '\n') + '\n'
        write(conf + '/main.cf', main)
        write(conf + '/master.cf', f"""127.0.0.1:{self.listen} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsproxy unix - - n - 0 tlsproxy
postlog unix-dgram n - n - 1 postlogd
""")
        write(conf + '/dynamicmaps.cf', '')
        return [pre + '/usr/lib/postfix/sbin/master', '-c', conf, '-d']

class Causeway(Peer):
    """Durable: the 250 follows the sync of the spool, as with Postfix."""
    spool_keys = ''
    def queued(self):
        # A log-structured spool keeps its files: what counts is what the sink has, and the daemon's own word at the end.
        return 0
    def prepare(self):
        tls = P('tls'); c = self.work + '/causeway.toml'
        hop = 'localhost' if A.tls else '127.0.0.1'
        level = f'tls = "domain"\ntls_domain = ["localhost"]\nca_file = "{tls}/ca.pem"'
        plain = f"""
[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{hop}:{self.nexthop}"]
{level if A.tls else 'tls = "off"'}
"""
        two = f"""
[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "cloud.test"

[[accepted_domain]]
name = "dest.test"
type = "authoritative"

[[directory]]
kind = "file"
path = "recipients.csv"

[[send_connector]]
name = "to-on-premises"
smart_hosts = ["127.0.0.1:{self.nexthop}"]
tls = "off"

[[send_connector]]
name = "to-cloud"
smart_hosts = ["localhost:{self.nexthop + 1}"]
{level}
"""
        write(self.work + '/recipients.csv', 'address,type,target\n0rcpt@dest.test,on-premises,\n1rcpt@dest.test,cloud,\n')
        write(c, f"""hostname = "relay.test"
postmaster = "postmaster@dest.test"
[spool]
path = "{self.spool}"
{self.spool_keys}
[[receive_connector]]
name = "in"
listen = ["127.0.0.1:{self.listen}"]
remote_ips = ["127.0.0.0/8"]
origin = "client"
max_connections_per_ip = 20000
max_connections = 20000
max_message_size = "60MB"
""".replace('60MB', '60MiB') + (f'tls = "require"\ncertificate = "{tls}/cert.pem"\nkey = "{tls}/key.pem"\n' if A.tls else 'tls = "off"\n')
        + (two if A.two else plain) + self.more() + f'[tracking]\npath = "{self.work}/log"\n[log]\nlevel = "warn"\n' + (A.extra.replace('\\n', '\n') if A.extra else ''))
        os.chmod(self.spool, 0o700)
        return [A.cmd or os.path.join(HERE, '../../target/release/causeway'), '-c', c, 'run']
    def more(self):
        return ''.join(f'[[send_connector]]\nname = "{name}"\naddress_spaces = ["{name}.test"]\n'
                       f'smart_hosts = ["127.0.0.1:{self.nexthop + at}"]\ntls = "off"\n' for name, at in BESIDE) if A.what == 'hops' else ''

class CausewayEarly(Causeway):
    """The 250 follows the next hop's, or where that takes too long the sync: nothing can be lost, the disk is mostly spared."""
    spool_keys = 'acknowledge = "delivered-or-durable"'

class Exim(Peer):
    mode = 'immediate'
    def env(self): e = dict(os.environ); e['LD_LIBRARY_PATH'] = P('exim/usr/lib/x86_64-linux-gnu'); return e
    def qdir(self): return self.spool + '/input'
    def queued(self):
        n = 0
        for _, _, f in os.walk(self.spool + '/input'): n += sum(1 for x in f if x.endswith('-H'))
        return n
    def prepare(self):
        etc = self.work + '/etc'; log = self.work + '/log'
        for d in (self.spool, log): os.makedirs(d, exist_ok=True); shutil.chown(d, 'Debian-exim', 'Debian-exim')
        tls = P('tls')
        if A.tls:
            os.makedirs(etc, exist_ok=True)
            for f in ('cert.pem', 'key.pem', 'ca.pem'):
                shutil.copy(f'{tls}/{f}', f'{self.work}/{f}'); shutil.chown(f'{self.work}/{f}', 'Debian-exim')
        q = self.mode == 'queue'
        write(etc + '/exim4.conf', f"""
primary_hostname = relay.test
exim_path = {P('exim/usr/sbin/exim4')}
keep_environment = LD_LIBRARY_PATH
spool_directory = {self.spool}
log_file_path = {log}/%slog
log_selector = -all
pid_file_path = {self.work}/exim.pid
daemon_smtp_ports = {self.listen}
local_interfaces = 127.0.0.1
disable_ipv6 = true
acl_smtp_rcpt = acl_rcpt
host_lookup =
rfc1413_hosts =
rfc1413_query_timeout = 0s
chunking_advertise_hosts =
{'tls_advertise_hosts = *' if A.tls else 'tls_advertise_hosts ='}
{f'tls_certificate = {self.work}/cert.pem' if A.tls else ''}
{f'tls_privatekey = {self.work}/key.pem' if A.tls else ''}
prdr_enable = false
message_size_limit = 60M
# --- throughput settings
deliver_drop_privilege = true
message_logs = false
split_spool_directory = true
smtp_accept_max = 1200
smtp_accept_max_per_host = 1200
smtp_accept_max_per_connection = 100000
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 1024
smtp_reserve_hosts =
recipients_max = 1000
remote_max_parallel = 10
queue_run_max = 8
smtp_enforce_sync = false
check_spool_space = 0
check_spool_inodes = 0
{'queue_only = true' if q else ''}
begin acl
acl_rcpt:
  accept
begin routers
smart:
  driver = manualroute
  route_list = * {'localhost' if A.tls else '127.0.0.1'} byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {self.nexthop}
  allow_localhost
  connection_max_messages = 500
  max_rcpt = 1000
  hosts_try_chunking =
  hosts_try_prdr =
  hosts_try_dane =
  dnssec_request_domains =
{f'''  hosts_require_tls = *
  tls_verify_certificates = {self.work}/ca.pem
  tls_verify_hosts = *
  tls_verify_cert_hostnames = *''' if A.tls else '  hosts_avoid_tls = *'}
begin retry
* * F,1h,1m
""")
        c = f'mount --bind {etc} /etc/exim4 && exec {P("exim/usr/sbin/exim4")} -bdf'
        if q: c += ' -q1s'
        return ['unshare', '-m', '--propagation', 'private', 'sh', '-c', c]
class EximQ(Exim): mode = 'queue'

class OpenSMTPD(Peer):
    def queued(self):
        n = 0
        for _, _, f in os.walk(self.spool + '/queue'): n += sum(1 for x in f if x == 'message')
        return n
    def prepare(self):
        tls = P('tls'); conf = self.work + '/smtpd.conf'; empty = self.work + '/empty'
        os.makedirs(empty); os.chmod(self.spool, 0o711)
        ca = ''
        if A.tls: ca = f'mount --bind {tls}/ca.pem /etc/ssl/certs/ca-certificates.crt && '
        write(conf, f"""
{f'pki relay.test cert "{tls}/cert.pem"' if A.tls else ''}
{f'pki relay.test key "{tls}/key.pem"' if A.tls else ''}
smtp max-message-size "60M"
smtp limit max-mails 100000
smtp limit max-rcpt 1000
mta limit max-conn-per-host 100
mta limit max-conn-per-route 100
mta limit max-conn-per-source 100
mta limit max-conn-per-connector 100
mta limit max-conn-per-relay 100
mta limit max-conn-per-domain 100
mta limit conn-delay-route 0
mta limit conn-delay-host 0
mta limit conn-delay-source 0
mta limit session-transaction-delay 0
mta limit session-mail-max 10000
mta limit session-keepalive 10
mta limit task-hiwat 500
mta limit task-lowat 300
mta limit task-release 100
scheduler limit max-inflight 50000
listen on 127.0.0.1 port {self.listen} hostname relay.test {'tls-require pki relay.test' if A.tls else ''}
action "out" relay host "{'smtp+tls' if A.tls else 'smtp+notls'}://{'localhost' if A.tls else '127.0.0.1'}:{self.nexthop}" {'tls' if A.tls else ''}
match from any for any action "out"
""", 0o600)
        os.chmod(self.work, 0o755)
        c = (f'{ca}mount --bind {self.spool} /var/spool/smtpd && mount --bind {empty} /var/lib/opensmtpd/empty && '
             f'mkdir -p {self.work}/run && mount --bind {self.work}/run /var/run && '
             f'exec {P("opensmtpd/usr/sbin/smtpd")} -F -f {conf}')
        return ['unshare', '-m', '--propagation', 'private', 'sh', '-c', c]

class Haraka(Peer):
    def env(self): return dict(os.environ, NODE_EXTRA_CA_CERTS=P('tls/ca.pem'))
    def prepare(self):
        mod = P('haraka/node_modules'); c = self.work + '/config'; tls = P('tls')
        os.symlink(mod, self.work + '/node_modules')
        self.spool = self.work + '/queue'; os.makedirs(self.spool, exist_ok=True)
        write(self.work + '/package.json', '{"name":"h","version":"1.0.0"}')
        write(c + '/smtp.ini', f'listen=127.0.0.1:{self.listen}\nnodes={A.haraka_nodes}\ninactivity_timeout=300\n')
        write(c + '/connection.ini', open(mod+'/Haraka/config/connection.ini').read().replace('bytes=26214400','bytes=60000000'))
        write(c + '/log.ini', '[main]\nlevel=crit\ntimestamps=false\nformat=default\n')
        write(c + '/outbound.ini', f'concurrency_max=100\nalways_split=false\nlocal_mx_ok=true\nenable_tls={"true" if A.tls else "false"}\n')
        write(c + '/me', 'relay.test\n'); write(c + '/host_list', '')
        pl = ['smarthost']
        if A.tls:
            pl.insert(0, 'tls')
            write(c + '/tls.ini', f'key={tls}/key.pem\ncert={tls}/cert.pem\nrequestCert=false\nrejectUnauthorized=false\n'
                  f'[outbound]\nrejectUnauthorized=true\n[redis]\ndisable_for_failed_hosts=false\n')
            for f in ('key', 'cert', 'ca'): shutil.copy(f'{tls}/{f}.pem', c + f'/{f}.pem')
        write(c + '/plugins', '\n'.join(pl) + '\n')
        write(self.work + '/plugins/smarthost.js', f"""
exports.register = function () {{
  this.register_hook('connect', 'relay'); this.register_hook('rcpt', 'ok'); this.register_hook('get_mx', 'mx');
}};
exports.relay = (next, connection) => {{ connection.relaying = true; next(); }};
exports.ok = (next) => next(OK);
exports.mx = (next) => next(OK, [{{priority: 0, exchange: '{'localhost' if A.tls else '127.0.0.1'}', port: {self.nexthop}}}]);
""")
        return ['node', mod + '/Haraka/bin/haraka', '-c', self.work]
    def queued(self):
        n = 0
        for _, _, f in os.walk(self.work + '/queue'): n += len(f)
        return n

class Custom(Peer):
    def sub(self, s):
        for k, v in dict(listen=self.listen, nexthop=self.nexthop, spool=self.spool, work=self.work,
                         ca=P('tls/ca.pem'), cert=P('tls/cert.pem'), key=P('tls/key.pem')).items():
            s = s.replace('{%s}' % k, str(v))
        return s
    def prepare(self):
        if A.user: shutil.chown(self.spool, A.user)
        if A.setup: subprocess.run(self.sub(A.setup), shell=True, check=True, cwd=self.work, timeout=60)
        return ['sh', '-c', 'exec ' + self.sub(A.cmd)]
    def queued(self):
        if A.queue_count: return int(sh(self.sub(A.queue_count)).stdout.strip() or 0)
        return super().queued()

PEERS = dict(postfix=Postfix, causeway=Causeway, **{'causeway-early': CausewayEarly}, exim=Exim, eximq=EximQ, opensmtpd=OpenSMTPD, haraka=Haraka, custom=Custom)

# ----------------------------------------------------------------- one measurement
def measure(peer, sink, cell, limit):
    size, sess, rc, n, nodisc = cell
    port = peer.listen if peer else A.nexthop
    mm = disk_dev(A.spoolroot or A.root)
    sink.zero()
    smp = None
    if peer:
        c0 = peer.cg.cpu(); smp = Sampler(peer.cg); smp.start()
    d0 = diskstats(mm); k0 = sink.cpu(); t0 = time.monotonic()
    g = subprocess.Popen(source_cmd(port, size, sess, rc, n, nodisc), env=pfx_env(),
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    gcpu = None; t_in = None; end = t0 + limit; ok = False; err = gout = ''; idle_empty = 0
    while time.monotonic() < end:
        time.sleep(0.005)
        got = sink.poll()
        if gcpu is None:
            pid, st, ru = os.wait4(g.pid, os.WNOHANG)
            if pid:
                t_in = time.monotonic() - t0; gcpu = ru.ru_utime + ru.ru_stime
                err = g.stderr.read().decode()[-300:]; gout = g.stdout.read().decode()
                if st: break
        if gcpu is not None and got >= n:
            if rc == 1 or A.two or peer is None: ok = True; break
            # several recipients: the peer may split, so also wait for an empty queue
            if time.monotonic() - sink.tlast > 0.3 and peer.queued() == 0: ok = True; break
    if gcpu is None:
        g.kill(); _, _, ru = os.wait4(g.pid, 0); gcpu = ru.ru_utime + ru.ru_stime
    g.returncode = 0
    t_out = sink.tlast - t0
    drained = None
    if peer and ok:
        for _ in range(100):                      # queue must become empty: <= 5 s
            q = peer.queued()
            if q == 0: drained = time.monotonic() - t0; break
            time.sleep(0.05)
    r = dict(peer=peer.name if peer else 'direct', size=size, sess=sess, rcpts=rc, n=n, d=nodisc, ok=ok,
             t_in=t_in and round(t_in, 3), t_out=round(t_out, 3), got=sink.mesg - sink.base, out_sess=sink.sess - sink.sbase,
             rate=round(n / t_out, 1) if ok else round((sink.mesg - sink.base) / max(t_out, .001), 1),
             gen_us=round(gcpu / n * 1e6), sink_us=round((sink.cpu() - k0) / n * 1e6), tls=A.tls, two=A.two)
    d1 = diskstats(mm)
    r.update(wr_per_msg=round((d1[0] - d0[0]) / n, 2), wkb_per_msg=round((d1[1] - d0[1]) / 2 / n, 1),
             flush_per_msg=round((d1[2] - d0[2]) / n, 3))
    if peer:
        c1 = peer.cg.cpu(); pk = smp.done()
        r.update(cpu_us=round((c1[0] - c0[0]) / n), usr_us=round((c1[1] - c0[1]) / n), sys_us=round((c1[2] - c0[2]) / n),
                 procs=pk[0], rss_mb=round(pk[1] / 1024, 1), anon_mb=round(pk[2] / 1024, 1),
                 drained=drained and round(drained, 3), left=0 if drained else peer.queued())
    if err: r['err'] = err
    r['load'] = A.load
    if gout.startswith('{'):
        j = json.loads(gout); r.update(ack_p50_us=j['ack_p50_us'], ack_p99_us=j['ack_p99_us'])
        if j['errors']: r['err'] = f"{j['errors']} x {j['first']}"
    return r

# cell = (size, sessions, recipients, count, many-messages-per-connection)
KEY = [(1024, 1, 1, 600, True), (1024, 20, 1, 3000, True), (1024, 20, 1, 3000, False), (1024, 100, 1, 3000, True),
       (1024, 20, 10, 1500, True), (10240, 20, 1, 3000, True), (102400, 20, 1, 1000, True), (1048576, 20, 1, 200, True)]
def full():
    out = []
    for size, n in ((1024, 2000), (10240, 2000), (102400, 600), (1048576, 100)):
        for s in (1, 20, 100):
            for rc in (1, 10):
                for d in (True, False):
                    out.append((size, s, rc, max(s, n // (4 if s == 1 else 1) // (2 if rc > 1 else 1)), d))
    return out
SCALE = dict(exim=0.35, eximq=0.35, haraka=0.6, opensmtpd=0.1, direct=3.0)

def make(name): return PEERS[name](A.name if name == 'custom' and A.name else name)

def warm(peer, sink):
    r = measure(peer, sink, (1024, 10, 2 if A.two else 1, 100, True), 25)
    if not r['ok']: print('WARMUP FAILED', json.dumps(r), file=sys.stderr)
    return r['ok']

def emit(r, out=None):
    line = json.dumps(r)
    if out:
        with open(out, 'a') as f: f.write(line + '\n')
    print(row(r), flush=True)

def label(r):
    s = r['size']; s = f'{s >> 20} MiB' if s >= 1 << 20 else f'{s >> 10} KiB'
    return f"{s} s={r['sess']} r={r['rcpts']} {'multi' if r['d'] else 'single'}{' two hops' if r.get('two') else ' tls' if r.get('tls') else ''}"
def row(r):
    x = f"{r['peer']:10} {label(r):26} n={r['n']:<5} {r['rate']:8.1f} msg/s"
    if 'cpu_us' in r:
        x += (f" cpu={r['cpu_us']:6d} us/msg (u{r['usr_us']} s{r['sys_us']}) rss={r['rss_mb']:.0f} MB"
              f" anon={r['anon_mb']:.0f} MB procs={r['procs']} wr/msg={r['wr_per_msg']} flush/msg={r['flush_per_msg']}")
    if 'ack_p50_us' in r: x += f" ack p50/p99={r['ack_p50_us']/1e3:.1f}/{r['ack_p99_us']/1e3:.1f} ms"
    x += f" gen={r['gen_us']} sink={r['sink_us']} out_sess={r['out_sess']}"
    if not r['ok']: x += f"  **INCOMPLETE got={r['got']} {r.get('err','')}"
    elif r['got'] != r['n']: x += f" out_msgs={r['got']}"
    if r.get('left'): x += f" LEFT={r['left']}"
    return x

def run_cells(names, cells, reps, out, budget):
    t_end = time.monotonic() + budget
    for rep in range(reps):
        for name in names:
            if time.monotonic() > t_end: print('budget spent'); return
            sink = sinks(A.nexthop); peer = None
            try:
                if name != 'direct':
                    peer = make(name); peer.start(A.listen, A.nexthop)
                    if not warm(peer, sink): continue
                for size, s, rc, n, d in cells:
                    if time.monotonic() > t_end: print('budget spent'); return
                    k = A.scale or SCALE.get(name, 1.0)
                    if name != 'direct' or size < 100000: n = max(s, int(n * k))
                    r = measure(peer, sink, (size, s, rc, n, d), A.limit); r['rep'] = rep
                    emit(r, out)
                    if not r['ok'] and peer:          # restart on a clean spool
                        peer.stop(); peer = None; sink.stop(); sink = sinks(A.nexthop)
                        peer = make(name); peer.start(A.listen, A.nexthop)
            finally:
                if peer: peer.stop()
                sink.stop()

# ----------------------------------------------------------------- idle sessions
def idle(name):
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    import ssl
    ctx = ssl.create_default_context(cafile=P('tls/ca.pem'))
    sink = sinks(A.nexthop); peer = make(name)
    try:
        peer.start(A.listen, A.nexthop); warm(peer, sink); time.sleep(1)
        b = peer.cg.rss(); bp = peer.cg.pss(); socks = []; fail = ''; t0 = time.monotonic(); c0 = peer.cg.cpu()[0]
        for i in range(A.conns):
            if time.monotonic() - t0 > 60: fail = 'time'; break
            try:
                s = socket.create_connection(('127.0.0.1', A.listen), 3); s.settimeout(5)
                g = s.recv(300)
                if not g.startswith(b'220'): fail = g[:80].decode('latin1'); s.close(); break
                s.sendall(b'EHLO client.test\r\n'); g = s.recv(2000)
                if not g.startswith(b'250'): fail = g[:80].decode('latin1'); break
                if A.tls:
                    s.sendall(b'STARTTLS\r\n'); s.recv(200)
                    s = ctx.wrap_socket(s, server_hostname='localhost'); s.sendall(b'EHLO client.test\r\n'); s.recv(2000)
                socks.append(s)
            except OSError as e: fail = repr(e); break
        time.sleep(2)
        a = peer.cg.rss(); ap = peer.cg.pss(); n = len(socks) or 1
        print(json.dumps(dict(peer=name, idle=len(socks), stopped=fail, secs=round(time.monotonic() - t0, 1), procs=a[0],
              rss_mb=round(a[1] / 1024, 1), anon_mb=round(a[2] / 1024, 1), pss_mb=round(ap / 1024, 1),
              base_pss_mb=round(bp / 1024, 1), pss_kb_per_conn=round((ap - bp) / n, 1), open_cpu_us=round((peer.cg.cpu()[0] - c0) / n),
              base_rss_mb=round(b[1] / 1024, 1))), flush=True)
        for s in socks: s.close()
    finally: peer.stop(); sink.stop()

# ----------------------------------------------------------------- one connection alone
def alone(name):
    """From the final dot to the 250, beside the disk's own append and fdatasync, in turn."""
    sink = sinks(A.nexthop); peer = make(name)
    try:
        peer.start(A.listen, A.nexthop); warm(peer, sink)
        s = socket.create_connection(('127.0.0.1', A.listen), 5); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.settimeout(10)
        replies = s.makefile('rb')
        def say(text):
            s.sendall(text)
            while (line := replies.readline())[3:4] == b'-': pass
            assert line[:1] in b'23', line
        body = b'From: a@load.test\r\n\r\n' + (b'y' * 70 + b'\r\n') * (A.size // 72 + 1)
        os.makedirs(P('work'), exist_ok=True); path = P('work', 'alone'); fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.write(fd, bytes(16 << 20)); os.fsync(fd); at = 0; record = os.urandom(A.size + 512)
        dots, syncs = [], []
        say(b''); say(b'EHLO client.test\r\n')
        for _ in range(A.count):
            for command in (b'MAIL FROM:<a@load.test>\r\n', b'RCPT TO:<0rcpt@dest.test>\r\n', b'DATA\r\n'): say(command)
            s.sendall(body); time.sleep(.0005)                     # it is there when the dot comes
            t = time.perf_counter(); say(b'.\r\n'); dots.append(time.perf_counter() - t)
            time.sleep(.002)                                       # what it makes of it is over
            t = time.perf_counter(); os.pwrite(fd, record, at); os.fdatasync(fd); syncs.append(time.perf_counter() - t)
            at = (at + len(record)) % (15 << 20)
        os.close(fd); os.unlink(path); s.close()
        p = lambda L, q: sorted(L)[int(len(L) * q)] * 1e3
        print(f'{name}: dot to 250 p50 {p(dots, .5):.2f} p99 {p(dots, .99):.2f} ms; append and fdatasync p50 {p(syncs, .5):.2f} p99 {p(syncs, .99):.2f} ms; '
              f'p50 {p(dots, .5) / p(syncs, .5):.2f} of it', flush=True)
    finally: peer.stop(); sink.stop()

# ----------------------------------------------------------------- disk
def disk():
    d = P('work', 'disk'); os.makedirs(d, exist_ok=True); f = d + '/a'
    st = sh(f'df -T {d} | tail -1').stdout.split(); print('spool fs:', st[0], st[1])
    buf = os.urandom(4096)
    def lat(n, fn, tag):
        L = []
        for i in range(n):
            t = time.perf_counter(); fn(i); L.append((time.perf_counter() - t) * 1e6)
        L.sort(); print(f'{tag}: n={n} p50={L[n//2]:.0f} us p99={L[int(n*.99)]:.0f} us max={L[-1]:.0f} us -> {1e6*n/sum(L):.0f}/s')
    fd = os.open(f, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    lat(3000, lambda i: (os.write(fd, buf), os.fdatasync(fd)), '4 KiB append + fdatasync (one growing file)')
    os.close(fd)
    fd = os.open(f, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b'\0' * (3000 * 4096)); os.fsync(fd); os.lseek(fd, 0, 0)
    lat(3000, lambda i: (os.write(fd, buf), os.fdatasync(fd)), '4 KiB overwrite (preallocated) + fdatasync')
    os.close(fd)
    def newfile(i):
        g = os.open(f'{d}/n{i}', os.O_CREAT | os.O_WRONLY); os.write(g, buf); os.fsync(g); os.close(g)
    lat(2000, newfile, 'new 4 KiB file + fsync')
    lat(2000, lambda i: os.unlink(f'{d}/n{i}'), 'unlink')
    for th in (4, 16):                       # concurrent fsync: what the journal can batch
        cnt = [0] * th; stop = time.monotonic() + 3
        def w(k):
            g = os.open(f'{d}/t{k}', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            while time.monotonic() < stop and cnt[k] < 100000: os.write(g, buf); os.fdatasync(g); cnt[k] += 1
            os.close(g)
        ts = [threading.Thread(target=w, args=(k,)) for k in range(th)]; t = time.monotonic()
        [x.start() for x in ts]; [x.join(20) for x in ts]
        print(f'{th} threads x own file, 4 KiB append + fdatasync: {sum(cnt)/(time.monotonic()-t):.0f}/s')
    fd = os.open(f, os.O_CREAT | os.O_WRONLY | os.O_TRUNC); big = os.urandom(1 << 20); t = time.monotonic()
    for i in range(1024): os.write(fd, big)
    os.fdatasync(fd); e = time.monotonic() - t; os.close(fd); print(f'1 GiB sequential write + fdatasync: {1024/e:.0f} MiB/s')
    shutil.rmtree(d)

# ----------------------------------------------------------------- throughput against concurrency
BESIDE = [('far', 1), ('crowded', 2), ('hanging', 3)]     # hops: domains, and where their sinks are beside the next hop
SESSIONS = [1, 5, 20, 50, 100, 200]
NO_TLS = ('haraka', 'opensmtpd')      # neither delivers through TLS in this setting: see benches/README.md
# So many times what Postfix gets, so that a run takes every peer a few seconds.
SHARE = {'exim': 0.35, 'eximq': 0.35, 'haraka': 0.6, 'opensmtpd': 0.1, 'direct': 8, 'causeway': 4, 'causeway-early': 4}

def about():
    cpu = next((l.split(':', 1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.machine())
    memory = next(int(l.split()[1]) for l in open('/proc/meminfo') if l.startswith('MemTotal')) >> 20
    versions = {}
    for f in sorted(os.listdir(P('debs'))):
        name, version = f.split('_')[:2]
        versions[name] = version.replace('%3a', ':')
    try: versions['haraka'] = json.load(open(P('haraka/node_modules/Haraka/package.json')))['version']
    except OSError: pass
    git = sh(['git', '-C', HERE, 'describe', '--always', '--dirty']).stdout.strip()
    if git: versions['causeway'] = git
    return dict(about=f"{os.cpu_count()} cores ({cpu}), {memory} GiB, Linux {platform.release()}", versions=versions,
                date=time.strftime('%Y-%m-%d'), fs=sh(['df', '--output=fstype', A.spoolroot or A.root]).stdout.split()[-1])

def sweep(names, out):
    """Every peer in turn gets the same work; the repetitions are the outermost loop, so that a slow quarter of an hour of
    the machine meets all of them."""
    if out:
        with open(out, 'a') as f: f.write(json.dumps(about()) + '\n')
    A.load = 'smtpload'
    for rep in range(A.reps):
        for A.tls in (False, True):
            for size in (1024, 10240):
                for name in names:
                    if A.tls and name in NO_TLS: continue
                    sink = Sink(A.nexthop); peer = None
                    try:
                        if name != 'direct':
                            peer = make(name); peer.start(A.listen, A.nexthop)
                            if not warm(peer, sink): continue
                        for s in A.at:
                            n = max(5 * s, int(A.count * SHARE.get(name, 1) * (0.25 if s == 1 else 1)))
                            r = measure(peer, sink, (size, s, 1, n, True), A.limit); r['rep'] = rep
                            emit(r, out)
                            if not r['ok']: break          # what stalls at so many connections stalls at more
                    except SystemExit as e: print(name, e, file=sys.stderr)
                    finally:
                        if peer: peer.stop()
                        sink.stop()

def hops(name):
    """20 connections bring mail for a healthy hop, while backlogs wait for a far one (20 ms to every answer), one that answers
    421 to more than 5 connections, and one that hangs. Beside it the same with the far one alone."""
    A.load = 'smtpload'; result = []
    def backlog(domain, n):
        c = source_cmd(A.listen, 1024, 4, 1, n, True) + ['--to', domain + '.test']
        r = sh(c)
        if r.returncode: raise SystemExit(f'{domain}: {r.stdout} {r.stderr}')
    for rep in range(A.reps):
        pair = {}
        for beside in (False, True) if rep % 2 == 0 else (True, False):
            all = [Sink(A.nexthop), Sink(A.nexthop + 1, None, '--delay', '20'), Sink(A.nexthop + 2, None, '--delay', '50', '--limit', '5'),
                   Sink(A.nexthop + 3, None, '--hang')]
            peer = make(name)
            try:
                peer.start(A.listen, A.nexthop); warm(peer, all[0])
                # The far one last, so that as much of it is left either way.
                if beside: backlog('hanging', A.count); backlog('crowded', A.count)
                backlog('far', A.count)
                r = measure(peer, all[0], (A.size, A.sessions, 1, A.count, True), A.limit); r.update(rep=rep, beside=beside)
                r['far'], r['crowded'] = all[1].poll(), all[2].poll()
                r['refused'] = max(0, all[2].sess - 5)
                if A.out:
                    with open(A.out, 'a') as f: f.write(json.dumps(dict(r, peer=name + ('-beside' if beside else '-alone'))) + '\n')
                print(f"{name:10} {'beside bad hops' if beside else 'alone':16} {r['rate']:8.1f} msg/s cpu={r['cpu_us']} us/msg ack p99={r.get('ack_p99_us', 0) / 1e3:.1f} ms"
                      f" far={r['far']} crowded={r['crowded']} connections there={all[2].sess}{'' if r['ok'] else ' INCOMPLETE'}", flush=True)
                if r['ok']: pair[beside] = r['rate']
            finally:
                peer.stop(); [s.stop() for s in all]
        if len(pair) == 2: result.append(pair[True] / pair[False])
    if result: print(f"{name}: beside bad hops {statistics.median(result):.2f} of the throughput alone (median of {len(result)} pairs, {min(result):.2f} to {max(result):.2f})")

# ----------------------------------------------------------------- report
def load(files):
    return [r for f in files for r in map(json.loads, open(f)) if 'peer' in r]

def report(files):
    rows = load(files)
    g = {}
    for r in rows:
        if r['ok']: g.setdefault((r['size'], r['sess'], r['rcpts'], r['d'], r['peer']), []).append(r)
    order = ['direct', 'postfix', 'causeway', 'causeway-early', 'exim', 'eximq', 'opensmtpd', 'haraka']
    order += sorted({k[4] for k in g} - set(order))
    cells = sorted({k[:4] for k in g}, key=lambda c: (c[0], c[2], c[1], not c[3]))
    for c in cells:
        print(f"\n**{label(dict(size=c[0], sess=c[1], rcpts=c[2], d=c[3]))}**\n")
        print('| peer | runs | msg/s (min–max) | CPU µs/msg (usr+sys) | peak RSS sum MB | private MB | procs | disk writes/msg | flush/msg | out conns | gen+sink µs/msg |\n|---|---|---|---|---|---|---|---|---|---|---|')
        for p in order:
            rs = g.get(c + (p,))
            if not rs: continue
            m = lambda k: statistics.median(r.get(k) or 0 for r in rs)
            x = f"| {p} | {len(rs)} | **{m('rate'):.0f}** ({min(r['rate'] for r in rs):.0f}–{max(r['rate'] for r in rs):.0f}) "
            if p == 'direct': x += '| – | – | – | – | – | – '
            else: x += f"| {m('cpu_us'):.0f} ({m('usr_us'):.0f}+{m('sys_us'):.0f}) | {m('rss_mb'):.0f} | {m('anon_mb'):.0f} | {m('procs'):.0f} | {m('wr_per_msg'):.1f} | {m('flush_per_msg'):.2f} "
            print(x + f"| {m('out_sess'):.0f} | {m('gen_us') + m('sink_us'):.0f} |")
    bad = [r for r in rows if not r['ok']]
    if bad: print('\nIncomplete runs:\n'); [print('- `' + row(r).strip() + '`') for r in bad]

def pivot(files):
    rows = load(files)
    g = {}
    for r in rows:
        if r['ok']: g.setdefault((r['size'], r['sess'], r['rcpts'], r['d']), {}).setdefault(r['peer'], []).append(r)
    ps = [p for p in ['direct', 'postfix', 'causeway', 'causeway-early', 'exim', 'eximq', 'opensmtpd', 'haraka'] if any(p in v for v in g.values())]
    ps += sorted({r['peer'] for r in rows} - set(ps) - {'opensmtpd'})
    print('\n| cell | ' + ' | '.join(f'{p} msg/s' + ('' if p == 'direct' else ' (µs CPU)') for p in ps) + ' |\n|---' + '|---' * len(ps) + '|')
    for c in sorted(g, key=lambda c: (c[0], c[2], c[1], not c[3])):
        x = f"| {label(dict(size=c[0], sess=c[1], rcpts=c[2], d=c[3]))} "
        for p in ps:
            rs = g[c].get(p); m = lambda k: statistics.median(r[k] for r in rs)
            x += '| – ' if not rs else f"| {m('rate'):.0f} " if p == 'direct' else f"| {m('rate'):.0f} ({m('cpu_us'):.0f}) "
        print(x + '|')

def ratio(files):
    """One line per row of work: Postfix beside us, same run, medians; the ratio is what counts."""
    g = {}
    for r in load(files):
        if r['ok']: g.setdefault((bool(r.get('two')), r['tls'], r['size'], r['rcpts'], r['sess'], not r['d']), {}).setdefault(r['peer'], []).append(r)
    print('| work | runs | Postfix msg/s | Causeway msg/s | ratio | CPU µs/msg Postfix → Causeway | peak RSS MiB Postfix → Causeway | MAIL to 250 at the client, p50 / p99 ms, Causeway |\n|---|---|---|---|---|---|---|---|')
    for c in sorted(g):
        p, w = g[c].get('postfix'), g[c].get('causeway')
        if not p or not w: continue
        m = lambda rs, k: statistics.median(r.get(k) or 0 for r in rs)
        two, tls, size, rc, sess, single = c
        name = f"{f'{size >> 20} MiB' if size >= 1 << 20 else f'{size >> 10} KiB'}, {sess} connections, " + ('one message each' if single else 'reused')
        name += ', two recipients at two hops, one behind TLS with a demanded name' if two else f', {rc} recipients' if rc > 1 else ''
        name += ', TLS both ways' if tls else ''
        print(f"| {name} | {min(len(p), len(w))} | {m(p, 'rate'):.0f} | {m(w, 'rate'):.0f} | {m(w, 'rate') / m(p, 'rate'):.1f} × "
              f"| {m(p, 'cpu_us'):.0f} → {m(w, 'cpu_us'):.0f} | {m(p, 'rss_mb'):.0f} → {m(w, 'rss_mb'):.0f} | {m(w, 'ack_p50_us') / 1e3:.1f} / {m(w, 'ack_p99_us') / 1e3:.1f} |")

def clean():
    for u in USERS: sh(['userdel', u])
    sh('groupdel postdrop')
    for m in MOUNTPTS:
        try: os.removedirs(m)
        except OSError: pass
    shutil.rmtree(A.root, ignore_errors=True)

def main():
    global A
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what'); ap.add_argument('rest', nargs='*')
    ap.add_argument('--root', default=os.environ.get('PEERS_ROOT', '/tmp/smtp-peers'))
    ap.add_argument('--spoolroot', default=os.environ.get('PEERS_SPOOLROOT', ''), help='directory (on the fs under test) for spools and configs')
    ap.add_argument('--listen', type=int, default=int(os.environ.get('PEERS_LISTEN', 2625)))
    ap.add_argument('--nexthop', type=int, default=int(os.environ.get('PEERS_NEXTHOP', 2626)))
    ap.add_argument('--size', type=int, default=1024); ap.add_argument('--sessions', type=int, default=20)
    ap.add_argument('--rcpts', type=int, default=1); ap.add_argument('--count', type=int, default=2000)
    ap.add_argument('--single', action='store_true', help='one message per connection')
    ap.add_argument('--peers', default='direct,postfix,causeway'); ap.add_argument('--cells', default='key')
    ap.add_argument('--reps', type=int, default=3); ap.add_argument('--out'); ap.add_argument('--limit', type=float, default=60)
    ap.add_argument('--budget', type=float, default=1800); ap.add_argument('--scale', type=float, default=0)
    ap.add_argument('--conns', type=int, default=1000); ap.add_argument('--tls', action='store_true'); ap.add_argument('--two', action='store_true', help='two recipients, two sinks')
    ap.add_argument('--cmd'); ap.add_argument('--setup'); ap.add_argument('--queue-count'); ap.add_argument('--user')
    ap.add_argument('--load', default='smtp-source', choices=['smtp-source', 'smtpload'])
    ap.add_argument('--at', type=lambda s: [int(x) for x in s.split(',')], default=SESSIONS, help='sweep: so many connections')
    ap.add_argument('--name'); ap.add_argument('--extra', help='extra main.cf lines (postfix)')
    ap.add_argument('--haraka', default='^3.1.1'); ap.add_argument('--haraka-before', default='2026-06-01')
    ap.add_argument('--haraka-nodes', default='cpus')
    A = ap.parse_args(); A.root = os.path.abspath(A.root)
    if A.two: A.rcpts = 2
    if A.tls or A.two: A.load = 'smtpload'
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))     # so that 'finally' stops what we started
    w = A.what
    if w == 'install': install()
    elif w == 'disk': disk()
    elif w == 'run':
        run_cells([A.rest[0]], [(A.size, A.sessions, A.rcpts, A.count, not A.single)], A.reps, A.out, A.budget)
    elif w == 'matrix':
        run_cells(A.peers.split(','), KEY if A.cells == 'key' else full(), A.reps, A.out, A.budget)
    elif w == 'idle': idle(A.rest[0])
    elif w == 'alone': alone(A.rest[0])
    elif w == 'report': report(A.rest)
    elif w == 'pivot': pivot(A.rest)
    elif w == 'ratio': ratio(A.rest)
    elif w == 'sweep': sweep(A.peers.split(','), A.out)
    elif w == 'hops': hops(A.rest[0] if A.rest else 'causeway')
    elif w == 'curves':
        import curves
        curves.write(A.rest[0])
    elif w == 'clean': clean()
    else: ap.error('unknown: ' + w)
main()
