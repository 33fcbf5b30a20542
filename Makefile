# The commands of this project. `make` alone lists them.
#
# Installation paths. The command line can set them; DESTDIR is prepended.
PREFIX     ?= /usr
BINDIR     ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec
DATADIR    ?= $(PREFIX)/share
MANDIR     ?= $(DATADIR)/man
UDEVDIR    ?= $(PREFIX)/lib/udev
UNITDIR    ?= $(PREFIX)/lib/systemd/system
UNITEXECDIR ?= $(PREFIX)/lib/systemd
UNITGENDIR ?= $(PREFIX)/lib/systemd/system-generators
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
DRACUTDIR  ?= $(PREFIX)/lib/dracut
INITRAMFSTOOLSDIR ?= $(DATADIR)/initramfs-tools
# Completions of bash, zsh and fish.
BASHDIR    ?= $(DATADIR)/bash-completion/completions
ZSHDIR     ?= $(DATADIR)/zsh/site-functions
FISHDIR    ?= $(DATADIR)/fish/vendor_completions.d
INSTALL    ?= /usr/bin/install
DESTDIR    ?=
# release, or debug for a quick build
PROFILEDIR ?= release

CARGO      ?= cargo
CARGO_FLAGS = --locked $(if $(filter release,$(PROFILEDIR)),--release)
TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),target)
BUILT       = $(TARGET_DIR)/$(PROFILEDIR)
# A separate folder for the udev programs, since `cargo test` builds them too, but not statically.
STATIC      = $(BUILT)/static
# A debug build suffices for a first look; real disks get the release build.
RUN_PROFILE ?= $(if $(DISKS),release,debug)
# The programs of each folder. The initramfs parts and the tools are separate packages.
DAEMONS = stratisd stratisd-min
BINARIES = stratis-min stratis-predict-usage stratis-decode-dm
TOOLS = stratisd-tools
# Other names of stratisd-tools.
TOOL_LINKS = stratis-dumpmetadata stratis-doctor
UDEV_PROGRAMS = stratis-base32-decode stratis-str-cmp
# Built statically: udev runs the first for many events, and in the initrd, which may have no libraries.
STATIC_PROGRAMS = $(UDEV_PROGRAMS) stratis-generator
GENERATORS    = stratis-setup-generator stratis-clevis-setup-generator
UNITS         = stratisd.service stratisd-min-postinitrd.service stratis-fstab-setup@.service \
                stratis-fstab-setup-with-network@.service
STRATISDATADIR = $(DATADIR)/stratisd
# Installs a file with the paths filled in: source, target, mode.
fill_in       = sed $(foreach path,LIBEXECDIR UDEVDIR UNITDIR UNITEXECDIR UNITGENDIR STRATISDATADIR,-e 's|@$(path)@|$($(path))|g') \
                    $(1) | $(INSTALL) -D -m $(3) /dev/stdin $(DESTDIR)$(2)
# The files of the package stratisd, of the part for initramfs images, and of the tools.
PACKAGES = stratisd initramfs tools
PAGES_stratisd = $(DAEMONS) $(BINARIES) $(UDEV_PROGRAMS)
PAGES_initramfs = $(GENERATORS)
PAGES_tools = $(TOOLS) $(TOOL_LINKS)
# Keeps glibc from returning the memory of each simulated machine, and of each large read, to the kernel.
KEEP_MEMORY = MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=16777216 MALLOC_MMAP_THRESHOLD_=33554432
# $(call install_programs,NAMES,FROM,TO)
install_programs = for program in $(1); do \
	    $(INSTALL) -D -m 0755 $(2)/$$program $(DESTDIR)$(3)/$$program || exit 1; \
	done
# Fails unless a program is statically linked.
is_static   = ldd $(STATIC)/$(1) 2>&1 | grep -Eq 'statically linked|not a dynamic executable' || \
                  { echo "$(STATIC)/$(1) is not statically linked; \`make build\` links it so" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run stop test test-quick test-machine machine machine-image setup setup-machine \
        structure loom-full shuttle-long history-long mutants bench power-cuts encryption-cuts boots crash-states crash-points crash-pairs \
        test-machine-longer test-clients-machine build-for-machine \
        build man build-daemon build-tools build-udev-programs build-machine-checks \
        install install-programs install-man-cfg uninstall dist deb rpm check-aarch64 test-packages

help: ## this guide
	@echo "stratisd, a storage daemon. New here: \`make run\` starts it on simulated disks and shows a first session,"
	@echo "\`make test-quick\` tests it. README.md says what it is, CONTRIBUTING.md how to change it."
	@awk -F ':.*## ' -v width=100 ' \
	    /^## / { printf "\n%s\n", substr($$0, 4) } \
	    /^[a-z0-9-]+:.*## / { \
	        line = sprintf("  make %-20s", $$1); words = split($$2, word, " "); \
	        for (i = 1; i <= words; i++) { \
	            if (length(line) + length(word[i]) + 1 > width) { print line; line = sprintf("%27s", "") } \
	            line = line (line ~ / $$/ ? "" : " ") word[i] } \
	        print line }' $(firstword $(MAKEFILE_LIST))

## Try it

run: ## start stratisd on simulated disks and show a session with the stratis client; DISKS="/dev/x /dev/y" takes real disks (root; erases them)
	@scripts/setup build run $(if $(DISKS),disks)
	@$(MAKE) --no-print-directory build PROFILEDIR=$(RUN_PROFILE)
	@BUILT=$(TARGET_DIR)/$(RUN_PROFILE) scripts/run start $(DISKS)

stop: ## end what `make run` left running
	@scripts/run stop

machine: ## open a shell in a throw-away machine with three disks and stratisd; KEEP=folder keeps the disks
	@scripts/setup build run machine
	@$(MAKE) --no-print-directory build PROFILEDIR=debug
	@python3 tests/machine/shell --built $(TARGET_DIR)/debug $(if $(KEEP),--keep $(KEEP))

machine-image: ## build what the throw-away machine boots from (root; once)
	@scripts/setup machine
	@python3 tests/machine/vm build

## Test it

test: ## run everything that CI runs
	@scripts/setup build run test machine
	@scripts/test

test-quick: ## the same without the throw-away machine
	@scripts/setup build run test
	@scripts/test --quick

test-machine: setup-machine ## test on a real kernel in the throw-away machine; ONLY=name runs one scenario
	@scripts/test --only build --only machine $(if $(ONLY),--scenario $(ONLY))

## Longer proofs

test-machine-longer: build-for-machine ## every check of LUKS2 and Clevis, eight encrypted pools, power cuts under encryption
	EVERY_CHECK=1 KILLS=20 ENCRYPTED_POOLS=8 tests/machine/tests --built $(TARGET_DIR)/debug --seconds 3600 \
	    --scenario platform-encryption --scenario start-encryption --scenario cut-encryption

test-clients-machine: build-for-machine ## stratis-cli, Cockpit in a browser, blivet and snapm, unchanged, in the throw-away machine (half an hour)
	tests/machine/tests --built $(TARGET_DIR)/debug --scenario clients

loom-full: ## test the lock with every schedule, without a bound (hours)
	LOCK_UNBOUNDED=1 $(CARGO) test --locked -p stratis-threads --features loom --test loom -- --nocapture

shuttle-long: ## test the lock with a million random schedules
	LOCK_ITERATIONS=1000000 $(CARGO) test --locked -p stratis-threads --features shuttle --test shuttle

history-long: ## ten million calls of concurrent clients, recorded and judged (two hours); CALLS=number for another count
	STRATIS_HISTORY_CALLS=$(or $(CALLS),10000000) $(CARGO) test --locked --release --test bus histories_of -- --nocapture

power-cuts: build-for-machine ## fifty power cuts in the throw-away machine
	tests/machine/tests --built $(TARGET_DIR)/debug --scenario power-cut --seeds 1..50

encryption-cuts: build-for-machine ## power cuts during encryption, re-encryption and decryption, fifty of each (two hours)
	tests/machine/tests --built $(TARGET_DIR)/debug --scenario cut-encryption --seeds 1..50

boots: build-for-machine ## boot the throw-away machine from a pool, COUNT=100 times, and count the failures (half an hour)
	BOOTS=$(or $(COUNT),100) tests/machine/tests --built $(TARGET_DIR)/debug --vm uml --scenario boot-count

crash-states: build-for-machine ## five hundred states of lost, reordered and torn writes in the throw-away machine
	CRASH_CUTS=500 tests/machine/tests --built $(TARGET_DIR)/debug --scenario crash-states --seconds 7200

crash-points: ## a thousand kills, power cuts and faults of each re-encryption job, simulated (half an hour)
	CRASH_POINTS=1000 $(KEEP_MEMORY) $(CARGO) test --locked --release --test crash online -- --nocapture

crash-pairs: ## pairs of faults in every operation that commits, a thousand for each, simulated (half an hour); PAIR_SEED=number for other pairs
	PAIRS=$(or $(PAIRS),1000) $(KEEP_MEMORY) $(CARGO) test --locked --release --test crash pairs -- --nocapture

# FILES is a pattern in which `*` matches slashes too.
mutants: ## mutation tests of the engine, the bus and threads; SAMPLE=number SEED=number, FILES='src/engine/plan/*', ALL=1 (hours)
	@scripts/setup build mutants
	@scripts/mutants $(if $(FILES),--files '$(FILES)') $(if $(ALL),--all) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

structure: ## generate docs/structure.md from the `use` lines
	@STRUCTURE=write $(CARGO) test --locked --quiet --test tidy -- --ignored structure_page

bench: ## measure the bus, compared with the least possible cost (four minutes); CALLS=1000000 CLIENTS=32000 show that memory is flat
	@$(CARGO) bench --locked --bench bus -- $(if $(CALLS),--calls $(CALLS)) $(if $(CLIENTS),--clients $(CLIENTS))

build-for-machine: setup-machine
	@$(MAKE) --no-print-directory build build-machine-checks PROFILEDIR=debug

setup-machine:
	@scripts/setup build run machine

setup: ## install all system packages that the other commands need
	@scripts/setup build run test disks machine

## Build and install

build: build-daemon build-tools build-udev-programs man ## build all programs with their manual pages

man: ## write the manual pages and shell completions of all programs
	@$(CARGO) run --quiet $(CARGO_FLAGS) -p stratis-manual -- $(BUILT)/pages

build-daemon:
	@$(CARGO) build $(CARGO_FLAGS) $(addprefix --bin ,$(DAEMONS) $(BINARIES))

build-tools:
	@$(CARGO) build $(CARGO_FLAGS) $(addprefix --bin ,$(TOOLS))

build-machine-checks:
	@$(CARGO) build $(CARGO_FLAGS) --example platform_machine

build-udev-programs:
	@mkdir -p $(STATIC); for program in $(STATIC_PROGRAMS); do \
	    $(CARGO) rustc $(CARGO_FLAGS) --bin $$program -- -C target-feature=+crt-static && cp $(BUILT)/$$program $(STATIC)/ || exit 1; \
	    $(call is_static,$$program); \
	done

# Packagers call these: `install-stratisd`, `install-initramfs` and `install-tools` for a package each, or the parts.
install: install-programs install-man-cfg ## install what `make build` built (root)

install-programs: $(addprefix install-programs-,$(PACKAGES))

install-man-cfg: $(addprefix install-man-,$(PACKAGES))

$(addprefix install-,$(PACKAGES)): install-%: install-programs-% install-man-%

install-programs-stratisd: install-daemons install-binaries install-udev-binaries install-udev-cfg install-dbus-cfg \
                           install-systemd-cfg install-fstab-script

install-programs-initramfs: install-generators install-dracut-cfg install-initramfs-tools-cfg

install-programs-tools: install-tools-binaries

install-daemons:
	$(call install_programs,$(DAEMONS),$(BUILT),$(LIBEXECDIR))

install-binaries:
	$(call install_programs,$(BINARIES),$(BUILT),$(BINDIR))

install-tools-binaries:
	$(call install_programs,$(TOOLS),$(BUILT),$(BINDIR))
	for name in $(TOOL_LINKS); do ln -f $(DESTDIR)$(BINDIR)/stratisd-tools $(DESTDIR)$(BINDIR)/$$name || exit 1; done

install-udev-binaries:
	for program in $(UDEV_PROGRAMS); do $(call is_static,$$program); done
	$(call install_programs,$(UDEV_PROGRAMS),$(STATIC),$(UDEVDIR))

install-udev-cfg:
	$(INSTALL) -D -m 0644 udev/61-stratisd.rules $(DESTDIR)$(UDEVDIR)/rules.d/61-stratisd.rules

install-dbus-cfg:
	$(INSTALL) -D -m 0644 dbus/stratisd.conf $(DESTDIR)$(DATADIR)/dbus-1/system.d/stratisd.conf

install-systemd-cfg:
	$(foreach unit,$(UNITS),$(call fill_in,systemd/$(unit),$(UNITDIR)/$(unit),0644) &&) true
	$(INSTALL) -D -m 0644 systemd/stratisd.tmpfiles $(DESTDIR)$(TMPFILESDIR)/stratisd.conf

install-fstab-script:
	$(INSTALL) -D -m 0755 boot/stratis-fstab-setup $(DESTDIR)$(UNITEXECDIR)/stratis-fstab-setup
	$(INSTALL) -D -m 0644 boot/stratis-setup-functions $(DESTDIR)$(UNITEXECDIR)/stratis-setup-functions

install-generators:
	$(call is_static,stratis-generator)
	$(INSTALL) -D -m 0755 $(STATIC)/stratis-generator $(DESTDIR)$(UNITGENDIR)/stratis-setup-generator
	ln -f $(DESTDIR)$(UNITGENDIR)/stratis-setup-generator $(DESTDIR)$(UNITGENDIR)/stratis-clevis-setup-generator
	$(INSTALL) -D -m 0644 boot/contents.sh $(DESTDIR)$(STRATISDATADIR)/initrd-contents.sh

DRACUT_MODULE = $(DRACUTDIR)/modules.d/50stratis

install-dracut-cfg:
	$(call fill_in,boot/dracut/50stratis/module-setup.sh,$(DRACUT_MODULE)/module-setup.sh,0755)
	$(call fill_in,boot/stratisd-min.service,$(UNITDIR)/stratisd-min.service,0644)
	$(INSTALL) -D -m 0755 boot/stratis-rootfs-setup $(DESTDIR)$(DRACUT_MODULE)/stratis-rootfs-setup
	$(INSTALL) -D -m 0644 udev/61-stratisd.rules $(DESTDIR)$(DRACUT_MODULE)/61-stratisd.rules
	$(call fill_in,boot/dracut/50stratis-clevis/module-setup.sh,$(DRACUT_MODULE)-clevis/module-setup.sh,0755)
	$(INSTALL) -D -m 0755 boot/stratis-clevis-rootfs-setup $(DESTDIR)$(DRACUT_MODULE)-clevis/stratis-clevis-rootfs-setup

install-initramfs-tools-cfg:
	$(call fill_in,boot/initramfs-tools/hook,$(INITRAMFSTOOLSDIR)/hooks/stratis,0755)
	$(call fill_in,boot/initramfs-tools/hook-clevis,$(INITRAMFSTOOLSDIR)/hooks/stratis-clevis,0755)
	$(INSTALL) -D -m 0644 boot/initramfs-tools/conf-hook $(DESTDIR)$(INITRAMFSTOOLSDIR)/conf-hooks.d/stratis
	$(call fill_in,boot/initramfs-tools/local-top,$(INITRAMFSTOOLSDIR)/scripts/local-top/stratis,0755)
	$(INSTALL) -D -m 0755 boot/initramfs-tools/local-block $(DESTDIR)$(INITRAMFSTOOLSDIR)/scripts/local-block/stratis
	$(INSTALL) -D -m 0644 boot/initramfs-tools/setup $(DESTDIR)$(STRATISDATADIR)/initramfs-tools-setup

# Programs that udev and systemd run have a page but no completions.
$(addprefix install-man-,$(PACKAGES)): install-man-%:
	for name in $(PAGES_$*); do \
	    $(INSTALL) -D -m 0644 $(BUILT)/pages/man/$$name.8 $(DESTDIR)$(MANDIR)/man8/$$name.8 || exit 1; \
	    [ -e $(BUILT)/pages/completions/bash/$$name ] || continue; \
	    $(INSTALL) -D -m 0644 $(BUILT)/pages/completions/bash/$$name $(DESTDIR)$(BASHDIR)/$$name && \
	    $(INSTALL) -D -m 0644 $(BUILT)/pages/completions/zsh/_$$name $(DESTDIR)$(ZSHDIR)/_$$name && \
	    $(INSTALL) -D -m 0644 $(BUILT)/pages/completions/fish/$$name.fish $(DESTDIR)$(FISHDIR)/$$name.fish || exit 1; \
	done

# Removes the files that `install` would install now; folders stay if anything else is in them.
uninstall: ## remove what `make install` installs (root)
	@folder=$$(mktemp -d) && $(MAKE) --no-print-directory -s install DESTDIR=$$folder > $$folder/.log 2>&1 || \
	    { cat $$folder/.log >&2; echo "uninstall needs what \`make build\` built, to know which files to remove" >&2; exit 1; }; \
	rm $$folder/.log; (cd $$folder && find . ! -type d -printf '%P\0') | (cd $(DESTDIR)/ && xargs -0 rm -f --) && \
	(cd $$folder && find . -depth -type d -path '*stratis*' -printf '%P\0') | \
	    (cd $(DESTDIR)/ && xargs -0 -r rmdir --ignore-fail-on-non-empty --) && rm -rf $$folder

## Package

dist: ## write target/dist/stratisd-VERSION.tar.xz: the last commit and all crates, to be built without a network
	@scripts/dist

deb: ## build Debian packages in target/deb from the last commit; DEB_PROFILE=debug for a quick build; TWICE=1 builds them again elsewhere and compares
	@scripts/setup build deb
	@scripts/deb $(if $(DEB_PROFILE),--profile $(DEB_PROFILE)) $(if $(TWICE),--twice)

rpm: ## build RPM packages in target/rpm from the last commit, on Debian too; RPM_PROFILE=debug for a quick build
	@scripts/setup build rpm
	@scripts/rpm $(if $(RPM_PROFILE),--profile $(RPM_PROFILE))

# The C library needs the headers for aarch64; the headers of the other libraries are the same for
# all architectures.
check-aarch64: ## type-check everything for aarch64 (needs rustup's target, and Debian's libc6-dev-arm64-cross)
	@PKG_CONFIG_ALLOW_CROSS=1 \
	    BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="--target=aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include" \
	    $(CARGO) check --locked --workspace --bins --lib --target aarch64-unknown-linux-gnu

test-packages: setup-machine ## install, upgrade and remove the packages in the throw-away machine (debug build)
	@scripts/setup build deb
	@scripts/test-packages
