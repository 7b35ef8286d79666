"""Logs of side-scan sonar: XTF written with pyxtf's structures, JSF byte by byte; sound ones, odd ones, and damaged ones."""
import struct
import sys
import warnings

import numpy as np
import pytest

from bgcs.data.files import ImageSetError, read_image
from bgcs.data.patches import cut_patches
from bgcs.data.sonar import SideScan, read_side_scan, write_side_scans
from bgcs.masks.predict import predict_large
from bgcs.runs.cli import main

pyxtf = pytest.importorskip("pyxtf")
PORT, STARBOARD, SUB_BOTTOM = 1, 2, 0


def echoes(pings=30, samples=100, seed=0, dtype=np.uint16, blind=20):
    "Samples `(pings, samples)`, the nearest first: dark water, then a bottom that fades."
    rng, n = np.random.default_rng(seed), np.arange(samples)
    values = np.where(n < blind, 5, 200 - n / samples * 120) * rng.uniform(0.8, 1.2, (pings, samples))
    return values.astype(dtype)


def xtf_header(channels, nav=3, old=None):
    "A header of channels `(kind, bytes, format, name, frequency)`."
    header = pyxtf.XTFFileHeader()
    header.NavUnits, header.NumberOfSonarChannels = nav, len(channels)
    size = 1024 * -(-(256 + 128 * max(6, len(channels))) // 1024)
    content = bytearray(size)
    content[:1024] = bytes(header)
    for number, (kind, width, sample_format, name, frequency) in enumerate(channels):
        info = pyxtf.XTFChanInfo()
        info.TypeOfChannel, info.SubChannelNumber, info.BytesPerSample, info.SampleFormat = kind, number, width, sample_format
        info.ChannelName, info.Frequency = name, frequency
        if old: info.Reserved = old
        content[256 + 128 * number:384 + 128 * number] = bytes(info)
    return bytes(content)


def xtf_ping(number, channels, altitude=2.0, slant=10.0, weight=0, pad=0, date=(2024, 5, 17, 10, 0, 0), **fields):
    "A packet of channels `{number: samples}`."
    ping = pyxtf.XTFPingHeader()
    ping.NumChansToFollow, ping.PingNumber, ping.SensorPrimaryAltitude = len(channels), number, altitude
    ping.Year, ping.Month, ping.Day, ping.Hour, ping.Minute, ping.Second = date
    own = {"NumSamples", "TimeDuration", "TimeDelay"}
    for name, value in fields.items():
        if name not in own: setattr(ping, name, value)
    ping.ping_chan_headers, ping.data = [], []
    for which, samples in channels.items():
        channel = pyxtf.XTFPingChanHeader()
        channel.ChannelNumber, channel.NumSamples, channel.SlantRange, channel.Weight = which, len(samples), slant, weight
        for name in own & fields.keys(): setattr(channel, name, fields[name])
        ping.ping_chan_headers.append(channel)
        ping.data.append(samples)
    ping.NumBytesThisRecord = 256 + sum(64 + samples.nbytes for samples in channels.values()) + pad
    return ping.to_bytes() + bytes(pad)


TWO = [(PORT, 2, 3, b"port", 600), (STARBOARD, 2, 3, b"starboard", 600)]


def xtf(path, port, starboard, channels=TWO, **options):
    pings = [xtf_ping(k + 1, {0: left[::-1], 1: right}, **options) for k, (left, right) in enumerate(zip(port, starboard))]
    path.write_bytes(xtf_header(channels) + b"".join(pings))
    return path


def jsf_message(kind, content, subsystem=20, channel=0, version=12):
    return struct.pack("<HBBHBBBBHi", 0x1601, version, 0, kind, 0, subsystem, channel, 0, 0, len(content)) + content


def jsf_ping(number, samples, channel=0, subsystem=20, kind=0, altitude=2.0, interval=133_333, weight=0, valid=1 | 8 | 64, seconds=1_715_940_000,
             milliseconds=250, units=2, x=6_060_000, y=32_640_000, version=12, n=None, first=0, speed=0.0):
    body = bytearray(240)
    n = len(samples) if n is None else n
    struct.pack_into("<iII", body, 0, seconds + number, first, number)
    struct.pack_into("<HH", body, 16, (n >> 16 & 15) << 8, 0)
    struct.pack_into("<HHh", body, 30, valid, 0, kind)
    struct.pack_into("<iih", body, 80, x, y, units)
    struct.pack_into("<HI", body, 114, n & 0xFFFF, interval)
    struct.pack_into("<if", body, 144, int(altitude * 1000), speed)
    struct.pack_into("<h", body, 168, weight)
    struct.pack_into("<H", body, 172, 9_250)
    struct.pack_into("<I", body, 200, 36_000_000 + milliseconds)
    return jsf_message(80, bytes(body) + samples.tobytes(), subsystem, channel, version)


def jsf(path, port, starboard, **options):
    messages = [jsf_ping(k, side[k], channel, **options) for k in range(len(port)) for channel, side in enumerate((port, starboard))]
    path.write_bytes(b"".join(messages))
    return path


def quietly(path, *args, **options):
    "Read a log about which nothing is to be said."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_side_scan(path, *args, **options)


# ---- sound logs

@pytest.mark.parametrize("kind", [xtf, jsf])
def test_both_sides_as_they_were_heard(tmp_path, kind):
    port, starboard = echoes(seed=1), echoes(seed=2)
    scan = quietly(kind(tmp_path / f"line.{kind.__name__}", port, starboard))
    assert np.array_equal(scan.port, port) and np.array_equal(scan.starboard, starboard) and scan.port.dtype == np.uint16
    assert not np.ma.isMA(scan.port) and len(scan) == 30 and scan.problems == ()
    assert np.array_equal(scan.image(), np.concatenate([port[:, ::-1], starboard], 1))
    assert np.allclose(scan.altitude, 2) and np.allclose(scan.spacing, 0.1, rtol=1e-4) and (scan.start == 0).all()
    assert str(scan).startswith("30 pings of 100 + 100 samples (") and "altitude of 30" in str(scan)


def test_what_xtf_says_of_each_ping(tmp_path):
    port = echoes(3)
    pings = [xtf_ping(k, {0: port[k], 1: port[k]}, altitude=3 + k, date=(2024, 2, 29, 23, 59, 58 - k), HSeconds=50, SensorHeading=91.5,
                      SensorXcoordinate=10.1, SensorYcoordinate=54.4 + k) for k in range(3)]
    (tmp_path / "line.xtf").write_bytes(xtf_header(TWO) + b"".join(pings))
    scan = quietly(tmp_path / "line.xtf", port_order="near")
    assert scan.time[1] == np.datetime64("2024-02-29T23:59:57.500000") and np.allclose(scan.heading, 91.5)
    assert np.allclose(scan.position, [(10.1, 54.4 + k) for k in range(3)]) and scan.units == "degrees"
    assert scan.altitude.tolist() == [3, 4, 5]
    pings = [xtf_ping(k, {0: port[k], 1: port[k]}, altitude=0, slant=0, date=(0, 0, 0, 0, 0, 0), TimeDuration=0.02, SoundVelocity=750,
                      ShipXcoordinate=400_000, ShipYcoordinate=6_000_000, TimeDelay=0.004) for k in range(3)]
    (tmp_path / "line.xtf").write_bytes(xtf_header(TWO, nav=0) + b"".join(pings))
    scan = quietly(tmp_path / "line.xtf", port_order="near")
    assert np.isnat(scan.time).all() and np.isnan(scan.heading).all() and np.isnan(scan.altitude).all()
    assert scan.units == "metres" and np.allclose(scan.position, (400_000, 6_000_000))
    assert np.allclose(scan.spacing, 0.02 * 1500 / 2 / 100) and np.allclose(scan.start, 3)


def test_what_jsf_says_of_each_ping(tmp_path):
    port = echoes(3)
    scan = quietly(jsf(tmp_path / "line.jsf", port, port, altitude=4.5, first=10))
    assert np.allclose(scan.altitude, 4.5) and np.allclose(scan.heading, 92.5) and np.allclose(scan.position, (10.1, 54.4))
    assert scan.time[2] == np.datetime64("2024-05-17T10:00:02.250") and np.allclose(scan.start, 1, rtol=1e-4)
    scan = quietly(jsf(tmp_path / "line.jsf", port, port, valid=0))
    assert all(np.isnan(values).all() for values in (scan.altitude, scan.heading, scan.position))
    scan = quietly(jsf(tmp_path / "line.jsf", port, port, units=3, x=4_000_000, y=60_000_000, valid=1 | 16384, speed=1450.0))
    assert np.allclose(scan.position, (400_000, 6_000_000)) and scan.units == "metres" and np.allclose(scan.spacing, 133_333e-9 * 1450 / 2)


@pytest.mark.parametrize("width, sample_format, dtype", [(1, 8, "u1"), (2, 3, "<u2"), (4, 2, "<u4"), (4, 5, "<f4"), (1, 0, "u1"), (2, 0, "<u2")])
def test_types_of_xtf_samples(tmp_path, width, sample_format, dtype):
    port = echoes(dtype=dtype)
    channels = [(kind, width, sample_format, b"", 0) for kind in (PORT, STARBOARD)]
    scan = quietly(xtf(tmp_path / "line.xtf", port, port, channels))
    assert np.array_equal(scan.port, port) and scan.port.dtype == np.dtype(dtype)


def test_complex_jsf_samples_and_long_pings(tmp_path):
    real = np.random.default_rng(0).integers(-3000, 3000, (2, 70_000, 2)).astype("<i2")
    path = tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_ping(k, real[k], channel, kind=1, n=70_000) for k in range(2) for channel in (0, 1)))
    scan = quietly(path)
    assert scan.port.shape == (2, 70_000) and np.allclose(scan.port, np.hypot(*real.astype(np.float32).transpose(2, 0, 1)))


def test_weights_scale_samples_where_they_differ(tmp_path):
    port = echoes(4)
    scan = quietly(jsf(tmp_path / "same.jsf", port, port, weight=3))
    assert np.array_equal(scan.port, port)
    path = tmp_path / "other.jsf"
    path.write_bytes(b"".join(jsf_ping(k, port[k], channel, weight=k) for k in range(4) for channel in (0, 1)))
    scan = quietly(path)
    assert scan.port.dtype == np.float32 and np.allclose(scan.port, port / 2.0 ** np.arange(4)[:, None])


def test_pairs_are_chosen_by_number_and_named(tmp_path):
    low, high = echoes(seed=1), echoes(samples=60, seed=2)
    channels = [(PORT, 2, 3, b"LF port", 120), (STARBOARD, 2, 3, b"LF stbd", 120), (SUB_BOTTOM, 2, 3, b"SBP", 5), (PORT, 2, 3, b"HF port", 410), (STARBOARD, 2, 3, b"HF stbd", 410)]
    pings = b"".join(xtf_ping(k + 1, {0: low[k][::-1], 1: low[k], 2: low[k], 3: high[k][::-1], 4: high[k]}) for k in range(30))
    path = tmp_path / "line.xtf"
    path.write_bytes(xtf_header(channels) + pings)
    one, two = quietly(path), quietly(path, pair=1)
    assert np.array_equal(one.port, low) and np.array_equal(two.starboard, high) and two.pair == 1
    assert one.pairs == ("LF port, 120 kHz and LF stbd, 120 kHz", "HF port, 410 kHz and HF stbd, 410 kHz")
    with pytest.raises(ImageSetError, match=r"has 2 pairs of channels \(0: LF port, 120 kHz and .*, 1: HF port.*\); there is no pair 2"): read_side_scan(path, 2)
    separate = b"".join(xtf_ping(k + 1, {0: low[k][::-1], 1: low[k]}) + xtf_ping(k + 1, {3: high[k][::-1], 4: high[k]}) for k in range(30))
    path.write_bytes(xtf_header(channels) + separate)
    assert np.array_equal(quietly(path, pair=1).port, high) and np.array_equal(quietly(path).port, low)
    path = tmp_path / "line.jsf"
    messages = [jsf_ping(k, of[k], channel, subsystem) for k in range(30) for subsystem, of in ((20, low), (21, high), (0, low)) for channel in (0, 1)]
    path.write_bytes(b"".join(messages))
    assert quietly(path).pairs == ("low frequency", "high frequency") and np.array_equal(quietly(path, pair=1).port, high)
    with pytest.raises(ValueError, match="pair=-1"): read_side_scan(path, -1)


def test_more_than_six_channels(tmp_path):
    port = echoes(5)
    channels = [(SUB_BOTTOM, 2, 3, b"", 0)] * 6 + TWO
    path = tmp_path / "line.xtf"
    path.write_bytes(xtf_header(channels) + b"".join(xtf_ping(k + 1, {6: port[k][::-1], 7: port[k]}) for k in range(5)))
    assert np.array_equal(quietly(path).port, port)


def test_old_files_and_padded_packets(tmp_path):
    "Numbers of samples in the file's header; packets filled up to multiples of 64 bytes."
    port = echoes(5)
    path = tmp_path / "line.xtf"
    pings = b"".join(xtf_ping(k + 1, {0: port[k][::-1], 1: port[k]}, NumSamples=0, pad=36) for k in range(5))
    path.write_bytes(xtf_header(TWO, old=100) + pings + bytes(64))
    assert np.array_equal(quietly(path).starboard, port)


def test_other_packets_are_passed_over(tmp_path):
    port = echoes(5)
    note = pyxtf.XTFNotesHeader()
    note.NumBytesThisRecord = 256
    path = tmp_path / "line.xtf"
    path.write_bytes(xtf_header(TWO) + b"".join(bytes(note) + xtf_ping(k + 1, {0: port[k][::-1], 1: port[k]}) for k in range(5)))
    assert np.array_equal(quietly(path).port, port)
    path = tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_message(2002, b"$GPGGA") + jsf_ping(k, port[k], c) + jsf_message(82, bytes(64)) for k in range(5) for c in (0, 1)))
    assert np.array_equal(quietly(path).port, port)


def test_pickled_index_beside_is_never_loaded(tmp_path):
    "pyxtf would load it."
    port = echoes(5)
    xtf(tmp_path / "line.xtf", port, port)
    (tmp_path / "line.pyxtf_idx").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "harm").encode() + b"'\ntR.")
    quietly(tmp_path / "line.xtf")
    assert not (tmp_path / "harm").exists()


# ---- uneven logs

def test_sides_of_unequal_length(tmp_path):
    port, starboard = echoes(samples=100), echoes(samples=70, seed=3)
    for path in (xtf(tmp_path / "line.xtf", port, starboard), jsf(tmp_path / "line.jsf", port, starboard)):
        scan = quietly(path)
        assert scan.image().shape == (30, 170) and np.array_equal(scan.starboard, starboard)
        assert [side.columns for side in scan.sides(share=None)] == [(0, 100), (100, 170)]


def test_sample_count_that_changes_midway(tmp_path):
    long, short = echoes(10, 100), echoes(10, 50, blind=10, seed=4)
    path = tmp_path / "line.jsf"
    messages = [jsf_ping(k, long[k], channel) for k in range(10) for channel in (0, 1)]
    messages += [jsf_ping(10 + k, short[k], channel, interval=266_666) for k in range(10) for channel in (0, 1)]
    path.write_bytes(b"".join(messages))
    with pytest.warns(UserWarning, match="the number of samples or their distance changes at ping 10, so that columns mean other ranges.*resampled"):
        scan = read_side_scan(path)
    assert scan.port.shape == (20, 100) and np.array_equal(scan.port[:10], long) and np.array_equal(scan.port[10:, :50], short)
    assert np.ma.getmaskarray(scan.port)[10:, 50:].all() and np.ma.count_masked(scan.image()) == 2 * 10 * 50
    even = scan.resampled()
    assert np.allclose(even.spacing, 0.15, rtol=1e-3) and even.port.shape == (20, 67) and not np.ma.isMA(even.port)
    fine = scan.resampled(0.1)
    assert np.array_equal(fine.port[:10], long) and fine.port.shape == (20, 100)
    far = np.abs(fine.port[10:, 30:].mean(0) - long[:, 30:].mean(0).astype(float))
    assert far.max() < 30  # the bottom fades as before the change
    assert fine.blind()[0].sum() == fine.blind()[15].sum() == 40
    with pytest.raises(ValueError, match="spacing=-1; expected metres above 0"): scan.resampled(-1)
    again = fine.resampled(0.1)
    assert np.array_equal(again.port, fine.port) and np.array_equal(again.blind(), fine.blind())


def test_ranges_that_vary_with_the_speed_of_sound_are_no_change(tmp_path):
    port, path = echoes(6), tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_ping(k, port[k], channel, valid=16384, speed=1500.0 + k / 7) for k in range(6) for channel in (0, 1)))
    assert len(set(quietly(path).spacing)) == 6


def test_recording_that_starts_late_is_put_on_the_grid(tmp_path):
    port = echoes(6)
    scan = quietly(jsf(tmp_path / "line.jsf", port, port, first=10, altitude=2.05))
    even = scan.resampled(0.1)
    assert even.port.shape == (6, 110) and np.ma.getmaskarray(even.port)[:, :10].all() and np.array_equal(even.port[:, 10:], port)
    assert even.blind()[0].sum() == 2 * 21 and scan.blind()[0].sum() == 2 * 11  # 20.5 samples, of which 10 were not recorded
    assert np.array_equal(np.ma.getmaskarray(even.resampled(0.1).port), np.ma.getmaskarray(even.port))


def test_pings_of_which_one_side_is_missing(tmp_path):
    port, path = echoes(6), tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_ping(k, port[k], channel) for k in range(6) for channel in (0, 1) if (k, channel) != (3, 1)))
    scan = quietly(path)
    assert len(scan) == 6 and np.ma.getmaskarray(scan.starboard)[3].all() and np.ma.count_masked(scan.image()) == 100
    path.write_bytes(b"".join(jsf_ping(k, port[k], 0) for k in range(6)))
    scan = quietly(path)
    assert scan.starboard.shape == (6, 0) and scan.image().shape == (6, 100) and [side.name for side in scan.sides()] == ["port"]


def test_sides_logged_one_after_the_other_and_numbers_that_begin_anew(tmp_path):
    port, starboard = echoes(6, seed=1), echoes(6, seed=2)
    path = tmp_path / "line.jsf"
    path.write_bytes(b"".join([jsf_ping(k, port[k], 0) for k in range(6)] + [jsf_ping(k, starboard[k], 1) for k in range(6)]))
    scan = quietly(path)
    assert np.array_equal(scan.port, port) and np.array_equal(scan.starboard, starboard)
    path.write_bytes(b"".join(jsf_ping(k % 3, side[k], channel) for k in range(6) for channel, side in enumerate((port, starboard))))
    scan = quietly(path)
    assert np.array_equal(scan.port, port) and np.array_equal(scan.starboard, starboard)


def test_port_recorded_with_the_nearest_sample_first(tmp_path):
    port = echoes(30)
    path = tmp_path / "line.xtf"
    path.write_bytes(xtf_header(TWO) + b"".join(xtf_ping(k + 1, {0: port[k], 1: port[k]}) for k in range(30)))
    with pytest.warns(UserWarning, match="port looks like starboard only when it is turned round.*say port_order='near'"): scan = read_side_scan(path)
    assert np.array_equal(scan.port, port[:, ::-1])
    assert np.array_equal(quietly(path, port_order="near").port, port)
    with pytest.raises(ValueError, match="port_order='left' is not known"): read_side_scan(path, port_order="left")


# ---- damaged logs

@pytest.mark.parametrize("kind, called", [(xtf, "packet"), (jsf, "message")])
def test_truncated_logs(tmp_path, kind, called):
    port = echoes(10)
    path = kind(tmp_path / f"line.{kind.__name__}", port, port)
    content = path.read_bytes()
    path.write_bytes(content[:-150])
    with pytest.warns(UserWarning, match=f"1 places could not be read and were passed over:\n  the last {called}, at byte .* is cut short"): scan = read_side_scan(path)
    assert np.array_equal(scan.port[:9], port[:9]) and len(scan.problems) == 1 and "1 problems" in str(scan)
    for n in (1, 2, 8, 15, 300):
        path.write_bytes(content[:n])
        with pytest.raises(ImageSetError, match="is no XTF file|holds no ping of side-scan sonar|is no JSF file"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_side_scan(path)


@pytest.mark.parametrize("kind", [xtf, jsf])
def test_damage_in_the_middle(tmp_path, kind):
    port = echoes(10)
    path = kind(tmp_path / f"line.{kind.__name__}", port, port)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + rng.integers(32, 127, 300).astype(np.uint8).tobytes() + content[middle + 300:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = read_side_scan(path)
    assert len(scan) >= 8 and np.array_equal(np.ma.getdata(scan.port)[-3:], port[-3:])
    path.write_bytes(content[:middle] + content[middle + 333:])
    with pytest.warns(UserWarning, match="could not be read and were passed over"): scan = read_side_scan(path)
    assert np.array_equal(np.ma.getdata(scan.port)[-3:], port[-3:]) and scan.problems


def test_any_damage_is_an_error_that_names_the_file_or_a_log(tmp_path):
    port, rng = echoes(6, 40), np.random.default_rng(1)
    for kind in (xtf, jsf):
        path = kind(tmp_path / f"line.{kind.__name__}", port, port)
        content = path.read_bytes()
        for _ in range(150):
            changed = bytearray(content[:rng.integers(1, len(content))] if rng.random() < 0.3 else content)
            for _ in range(rng.integers(1, 6)):
                at = rng.integers(0, len(changed))
                changed[at:at + 4] = rng.integers(0, 256, 4).astype(np.uint8).tobytes()
            path.write_bytes(changed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try: scan = read_side_scan(path)
                except ImageSetError as error: assert str(path) in str(error)
                else: assert isinstance(scan, SideScan) and scan.image().shape[0] == len(scan)


def test_logs_without_pings_and_other_files(tmp_path):
    (tmp_path / "none.xtf").write_bytes(xtf_header(TWO))
    with pytest.raises(ImageSetError, match="none.xtf holds no ping of side-scan sonar"): read_side_scan(tmp_path / "none.xtf")
    (tmp_path / "none.jsf").write_bytes(jsf_message(2002, b"$GPGGA"))
    with pytest.raises(ImageSetError, match="none.jsf holds no ping of side-scan sonar"): read_side_scan(tmp_path / "none.jsf")
    (tmp_path / "raw.jsf").write_bytes(jsf_ping(0, echoes(1)[0], kind=2))
    with pytest.raises(ImageSetError, match=r"raw.jsf holds no ping.*\n.*hold raw samples \(data format 2\), which are no image yet"): read_side_scan(tmp_path / "raw.jsf")
    (tmp_path / "empty.xtf").write_bytes(b"")
    with pytest.raises(ImageSetError, match="is empty"): read_side_scan(tmp_path / "empty.xtf")
    for suffix in ("xtf", "jsf"):
        (tmp_path / f"text.{suffix}").write_bytes(b"a letter, and no log at all" * 100)
        with pytest.raises(ImageSetError, match=f"is no {suffix.upper()} file, whatever its name says"): read_side_scan(tmp_path / f"text.{suffix}")
        with pytest.raises(ImageSetError, match="is not there"): read_side_scan(tmp_path / f"gone.{suffix}")
    with pytest.raises(ImageSetError, match="ends in '.sdf'; expected a log that ends in .xtf or .jsf"): read_side_scan("line.sdf")
    (tmp_path / "ibm.xtf").write_bytes(xtf_header([(PORT, 4, 1, b"", 0)]) + bytes(64))
    with pytest.raises(ImageSetError, match="ibm.xtf has samples of format 1 with 4 bytes, which is not read"): read_side_scan(tmp_path / "ibm.xtf")


def test_says_how_to_get_pyxtf(tmp_path, monkeypatch):
    path, jsf_path = xtf(tmp_path / "line.xtf", echoes(), echoes()), jsf(tmp_path / "line.jsf", echoes(), echoes())
    monkeypatch.setitem(sys.modules, "pyxtf", None)
    with pytest.raises(ImageSetError, match=r"needs the package pyxtf: pip install 'bgcs\[sonar\]'"): read_side_scan(path)
    assert len(quietly(jsf_path)) == 30


# ---- the water column, sides and images

def line(tmp_path, altitudes, samples=100):
    port, path = echoes(len(altitudes), samples), tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_ping(k, port[k], channel, altitude=a, valid=1 | (64 if a else 0)) for k, a in enumerate(altitudes) for channel in (0, 1)))
    return quietly(path)


def test_blind_band_follows_the_altitude(tmp_path):
    scan = line(tmp_path, [2, 3, 0, 5, 0])
    left, right = scan.blind()[:, :100], scan.blind()[:, 100:]
    assert np.array_equal(left[:, ::-1], right) and right.sum(1).tolist() == [21, 31, 41, 51, 51]  # gaps are filled; 2 m are 20.0001 samples
    assert [side.columns for side in scan.sides()] == [(0, 59), (141, 200)] and [side.mirrored for side in scan.sides()] == [False, True]
    assert [side.columns for side in scan.sides(share=1)] == [(0, 49), (151, 200)] and [side.columns for side in scan.sides(share=None)] == [(0, 100), (100, 200)]
    with pytest.raises(ValueError, match="share=2; expected 0 to 1, or None"): scan.sides(share=2)
    with pytest.raises(ValueError, match="no altitude or no range was recorded.*sonar_sides finds the blind band"): line(tmp_path, [0, 0]).blind()
    assert line(tmp_path, [50, 50]).blind().all() and line(tmp_path, [50, 50]).sides() == []


def test_sides_are_cut_and_predicted(tmp_path):
    scan = line(tmp_path, [2.0] * 40)
    image, boxes = scan.image(), [[5, 10, 15, 20]]
    data = cut_patches([image], 16, boxes=[boxes], stride=8, regions=lambda image: scan.sides(), invalid=lambda image: scan.blind(), object_share=(0.01, 1), progress=False)
    assert (data.places[:, 1] + 16 <= 80).any() and not ((data.places[:, 1] + 16 > 80) & (data.places[:, 1] < 120)).any()
    mask = predict_large(lambda images: images, image / 255, tile=16, regions=lambda image: scan.sides())
    assert np.isnan(mask[:, 80:120]).all() and np.allclose(mask[:, :79], image[:, :79] / 255, atol=1e-5)


def test_some_pings(tmp_path):
    scan = line(tmp_path, [2.0] * 10)
    part = scan[3:7]
    assert len(part) == 4 and np.array_equal(part.port, scan.port[3:7]) and np.array_equal(part.time, scan.time[3:7])
    with pytest.raises(TypeError, match=r"expected a slice of pings, such as scan\[:1000\]; got 3"): scan[3]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_are_written_and_read_again(tmp_path, suffix):
    scan = line(tmp_path, [2.0] * 10)
    path = scan.write(tmp_path / f"line{suffix}")
    assert np.array_equal(read_image(path)[0], scan.image()) and not list(tmp_path.glob("*.msk")) and not list(tmp_path.glob(".*"))
    path = tmp_path / "gaps.jsf"
    path.write_bytes(b"".join(jsf_ping(k, echoes(6)[k], channel) for k in range(6) for channel in (0, 1) if (k, channel) != (3, 1)))
    gaps = quietly(path)
    read = read_image(gaps.write(tmp_path / f"line{suffix}"))[0]
    assert np.array_equal(np.ma.getmaskarray(read), np.ma.getmaskarray(gaps.image()))
    assert np.array_equal(read.compressed(), gaps.image().compressed())
    scan.write(tmp_path / f"line{suffix}")
    assert not list(tmp_path.glob("*.msk"))  # an older one would hide what is there now


def test_floats_go_to_tiff_only(tmp_path):
    path = tmp_path / "line.jsf"
    path.write_bytes(b"".join(jsf_ping(k, echoes(4)[k], channel, weight=k) for k in range(4) for channel in (0, 1)))
    scan = quietly(path)
    assert np.array_equal(read_image(scan.write(tmp_path / "line.tif"))[0], scan.image())
    with pytest.raises(ValueError, match="a PNG holds 8 or 16 bits, and this log has float32. Write a .tif"): scan.write(tmp_path / "line.png")
    with pytest.raises(ValueError, match="ends in '.jpg'; expected .png or .tif"): scan.write(tmp_path / "line.jpg")


def test_a_folder_of_images_from_logs(tmp_path):
    a, b = xtf(tmp_path / "a.xtf", echoes(25), echoes(25)), jsf(tmp_path / "b.jsf", echoes(8), echoes(8))
    written = write_side_scans([a, b], tmp_path / "images", pings=10)
    assert [path.name for path in written] == ["a_0000.png", "a_0001.png", "a_0002.png", "b.png"]
    assert np.array_equal(np.concatenate([read_image(path)[0] for path in written[:3]]), quietly(a).image())
    (tmp_path / "bad.xtf").write_bytes(b"no log")
    with pytest.raises(ImageSetError, match="bad.xtf is no XTF file"): write_side_scans([a, tmp_path / "bad.xtf"], tmp_path / "more")
    with pytest.warns(UserWarning, match="1 of 2 logs could not be read:\n.*bad.xtf is no XTF file"): assert len(write_side_scans([tmp_path / "bad.xtf", b], tmp_path / "more", on_bad="skip")) == 1
    with pytest.raises(ValueError, match="several logs are named a, and their images would be"): write_side_scans([a, tmp_path / "x" / "a.jsf"], tmp_path / "more")
    with pytest.raises(ValueError, match="suffix='.jpg' is not known"): write_side_scans([a], tmp_path / "more", suffix=".jpg")


def test_picture(tmp_path):
    for altitudes, n in (([2.0] * 10, 2), ([0.0] * 10, 0)):
        axes, = line(tmp_path, altitudes).plot().axes
        assert axes.images[0].get_array().shape == (10, 200) and len(axes.lines) == n


def test_the_command_line_writes_images(tmp_path, capsys):
    log = xtf(tmp_path / "line.xtf", echoes(30), echoes(30))
    assert main(["sonar", str(log), "--out", str(tmp_path / "lines"), "--pings", "10", "--suffix", ".tif"]) == 0
    assert "3 images in" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "lines").iterdir())] == [f"line_{k:04}.tif" for k in range(3)]
